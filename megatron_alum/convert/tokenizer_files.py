"""The tokenizer that travels with the weights: copied file by file, completed where it is bare, limited in length.

Files stay as they are where they are complete: saving a tokenizer again could change them. A folder that loads only
beside its model's config.json, or that holds a bare vocabulary, is saved once more by transformers, which writes the
tokenizer.json that every later reader takes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_alum.data.tokenizers.bare_vocabulary import TOKENIZER_FILES, has_tokenizer
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer, save_tokenizer

_CONFIG = "tokenizer_config.json"


def fitting_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer of `folder`. Raises: ValueError when it is unfit or has more entries than the model."""
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer {folder} must have at most the model's {vocab_size} entries, but has {len(tokenizer)} "
            "instead. It belongs to another model."
        )
    return tokenizer


def copy_tokenizer(source: Path, target: Path, tokenizer: Any) -> None:
    """Copy the tokenizer of a folder, which may hold a model too, so that `target` alone loads as `tokenizer` does."""
    for name in TOKENIZER_FILES:
        for path in source.glob(name):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    if not all((target / name).is_file() for name in ("tokenizer.json", _CONFIG)) or not _loads_alone(target):
        save_tokenizer(tokenizer, target)


def import_tokenizer(source: Path, target: Path, vocab_size: int) -> bool:
    """`copy_tokenizer` of a model's folder into a checkpoint; returns whether there is one to copy.

    Raises: ValueError for what an export or a run would refuse later.
    """
    if not has_tokenizer(source):
        return False
    copy_tokenizer(source, target, fitting_tokenizer(source, vocab_size))
    return True


def limit_length(folder: Path, usable: int) -> None:
    """Write the model's longest input into the tokenizer of an export, so that truncation=True truncates.

    A shorter limit that the tokenizer has already is its owner's, and stays.
    """
    path = folder / _CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    limit = config.get("model_max_length", config.get("max_len"))  # its name before transformers 3
    if isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit <= usable:
        usable = int(limit)
    if config.get("model_max_length") == usable:
        return
    config["model_max_length"] = usable
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _loads_alone(folder: Path) -> bool:
    try:
        load_tokenizer(folder)
    except ValueError:
        return False
    return True
