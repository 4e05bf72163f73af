"""Configuration dataclasses, one per concern, and the command line built from them."""
