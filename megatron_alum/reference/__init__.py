"""The fused ops in plain torch: definition, fallback and the second implementation that every kernel is tested against.

One file each: rows.py (divergence and MLM loss of logits), tokens.py (step, projection and sum of the perturbation),
noise.py (its random start), dropout.py, attention.py (attention within sequences). Nothing but torch is imported, so
that both `ops` and `alum` can build on it.
"""
