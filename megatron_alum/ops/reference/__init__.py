"""The fused ops in plain torch: definition, fallback and the second implementation that every kernel is tested
against."""
