"""Configuration dataclasses, one concern each, and the command line built from them."""
