"""Preprocessed text on disk: .bin, .idx and manifest, written by preprocessing and read by the sampler."""
