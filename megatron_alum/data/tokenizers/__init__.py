"""Vocabularies and tokenizer folders: how words become ids, for preprocessing and for training alike."""
