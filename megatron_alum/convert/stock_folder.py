"""Locates a checkpoint of stock Megatron-LM, by file names only."""

from __future__ import annotations

from pathlib import Path

from megatron_alum.checkpoint.folder import COMPLETE_FILE, CONFIG_FILE, LATEST_FILE
from megatron_alum.convert.common_state import may_have_common_state
from megatron_alum.convert.rank_files import rank_grid


def find_stock_checkpoint(load: str | Path) -> Path | None:
    """The folder of a stock checkpoint's tensors: `load` itself or the iteration that its tracker names, or None."""
    given = Path(load)
    for folder in (given, *_latest(given)):
        ours = any((folder / name).is_file() for name in (COMPLETE_FILE, CONFIG_FILE))
        if (may_have_common_state(folder) and not ours) or rank_grid(folder):
            return folder
    return None


def how_to_convert(path: str | Path) -> str | None:
    """The error for a stock checkpoint where a run or a Hugging Face folder is expected; None for anything else."""
    if not Path(path).is_dir() or find_stock_checkpoint(path) is None:
        return None
    return (
        f"{path} is a checkpoint of Megatron-LM. Convert it first: megatron-alum convert to-hf --load {path} "
        "--tokenizer TOKENIZER_DIR --output HF_DIR, then start from it with --init-from HF_DIR."
    )


def _latest(given: Path) -> list[Path]:
    """The folder that a run's tracker names: an iteration, or `release` for a published model."""
    tracker = given / LATEST_FILE
    text = tracker.read_text(encoding="utf-8", errors="replace").strip() if tracker.is_file() else ""
    if text == "release":
        return [given / "release"]
    return [given / f"iter_{int(text):07d}"] if text.isdecimal() else []
