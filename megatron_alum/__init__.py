"""Adversarial pre-training (ALUM, arXiv 2004.08994) of BERT and RoBERTa on megatron-core.

Importing this needs neither a GPU nor a built extension.
"""

__version__ = "0.1.0"
