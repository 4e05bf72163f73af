"""What tools/convert_checkpoint.py does: one conversion, its progress and its closing line."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from megatron_alum.compat import silence_fallback_warnings
from megatron_alum.convert.checkpoint_source import read_checkpoint_source
from megatron_alum.convert.hf_config import ExportKind
from megatron_alum.convert.import_folder import import_folder
from megatron_alum.convert.to_hf import ExportSource, export_folder
from megatron_alum.convert.verify import Comparison, compare, single_rank_model


def to_hf(
    load: str, output: Path, *, kind: ExportKind | None = None, dtype: str | None = None, verify: bool = False
) -> None:
    """Export the newest valid checkpoint of `load` as the new folder `output`. Raises: ValueError with one sentence."""
    start = time.perf_counter()
    _quiet_libraries()
    source = read_checkpoint_source(load)

    def check(written: Path) -> None:
        _report(compare_with_checkpoint(written, Path(source.label), source), exact=dtype is None)

    export_folder(source, output, kind=kind, dtype=dtype, check=check if verify else None)
    print(f"{output}: iteration {source.iteration} of {load} ({time.perf_counter() - start:.1f} s)")


def from_hf(model: str, save: Path, *, dtype: str | None = None, verify: bool = False) -> None:
    """Import the folder or hub name `model` as the new run folder `save`. Raises: ValueError with one sentence."""
    start = time.perf_counter()
    _quiet_libraries()

    def check(hf_dir: Path, written: Path) -> None:
        _report(compare_with_checkpoint(hf_dir, written, read_checkpoint_source(written)), exact=dtype is None)

    checkpoint = import_folder(model, save, dtype=dtype, check=check if verify else None)
    print(f"{checkpoint}: weights of {model} ({time.perf_counter() - start:.1f} s)")


def compare_with_checkpoint(hf_dir: Path, checkpoint: Path, source: ExportSource) -> Comparison:
    """Both folders on one batch, the checkpoint loaded by megatron-core."""
    from megatron_alum.checkpoint.load import load_model_weights

    with single_rank_model(source.model, source.vocab_size) as model:
        load_model_weights(checkpoint, model)
        return compare(hf_dir, model)


def _quiet_libraries() -> None:
    """Leave the terminal to this tool: `warning: ...` lines for what concerns the user, no bars of one second."""
    import transformers

    silence_fallback_warnings()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|megatron)\.")
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    transformers.utils.logging.disable_progress_bar()


def _report(comparison: Comparison, *, exact: bool) -> None:
    print(f"verified: {comparison}")
    if exact:
        comparison.check()
