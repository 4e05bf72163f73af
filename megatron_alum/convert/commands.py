"""What `megatron-alum convert` does: one conversion, its warnings and its closing line."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from megatron_alum.compat import silence_fallback_warnings
from megatron_alum.config.places import about
from megatron_alum.convert.card_words import CardWish
from megatron_alum.convert.checkpoint_source import CheckpointWeights, read_checkpoint_source
from megatron_alum.convert.from_hf import fill_parameters
from megatron_alum.convert.hf_config import ExportKind
from megatron_alum.convert.import_folder import import_folder
from megatron_alum.convert.output import require_free
from megatron_alum.convert.stock import read_stock_source
from megatron_alum.convert.stock_folder import find_stock_checkpoint
from megatron_alum.convert.to_hf import ExportSource, export_folder
from megatron_alum.convert.verify import Comparison, compare, single_rank_model
from megatron_alum.ops.allocator import return_freed_memory


def to_hf(
    load: str,
    output: Path,
    *,
    kind: ExportKind | None = None,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    num_attention_heads: int | None = None,
    verify: bool = False,
    wish: CardWish | None = None,
) -> None:
    """Export the newest valid checkpoint of `load` as the new folder `output`.

    `load` may also be a checkpoint of stock Megatron-LM. `tokenizer` is for a checkpoint without one: required
    for stock Megatron-LM, optional for the import of a model without a tokenizer. `num_attention_heads` is that of a
    Megatron-LM checkpoint from before its arguments were stored.
    Raises: ValueError with one sentence.
    """
    start = time.perf_counter()
    require_free(output, "--output")  # before a large checkpoint is read
    return_freed_memory()
    _quiet_libraries()
    with about("--load"):
        stock = find_stock_checkpoint(load)
        if stock is None:
            source = read_checkpoint_source(load, tokenizer)
        else:
            source = read_stock_source(stock, tokenizer, num_attention_heads=num_attention_heads)

    def check(written: Path) -> None:
        compared = (
            _compare_with_checkpoint(written, source) if stock is None else _compare_with_tensors(written, source)
        )
        _report(compared, exact=dtype is None)

    export_folder(source, output, kind=kind, dtype=dtype, check=check if verify else None, wish=wish)
    print(f"{output}: iteration {source.iteration} of {load} ({time.perf_counter() - start:.1f} s)")


def from_hf(model: str, save: Path, *, dtype: str | None = None, verify: bool = False) -> None:
    """Import the folder or hub name `model` as the new run folder `save`. Raises: ValueError with one sentence."""
    start = time.perf_counter()
    return_freed_memory()
    _quiet_libraries()

    def check(hf_dir: Path, written: Path) -> None:
        _report(_compare_with_checkpoint(hf_dir, read_checkpoint_source(written)), exact=dtype is None)

    with about("--model"):
        checkpoint = import_folder(model, save, dtype=dtype, check=check if verify else None)
    print(f"{checkpoint}: weights of {model} ({time.perf_counter() - start:.1f} s)")


def _compare_with_checkpoint(hf_dir: Path, source: ExportSource) -> Comparison:
    """Compare folder and checkpoint on one batch, the checkpoint read by megatron-core and not by the converter."""
    from megatron_alum.checkpoint.load import load_model_weights

    with single_rank_model(source.model, source.vocab_size) as model:
        load_model_weights(source.label, model)
        return compare(hf_dir, model)


def _compare_with_tensors(hf_dir: Path, source: ExportSource) -> Comparison:
    """The same for a stock checkpoint, whose tensors are copied into our network directly."""
    weights = CheckpointWeights(source)
    with single_rank_model(source.model, source.vocab_size) as model:
        fill_parameters(model, weights.rows, weights.megatron_tensor)
        return compare(hf_dir, model)


def _quiet_libraries() -> None:
    """Print only `warning: ...` lines that concern the user, and no short-lived progress bars."""
    import transformers

    silence_fallback_warnings()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|megatron)\.")
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    transformers.utils.logging.disable_progress_bar()


def _report(comparison: Comparison, *, exact: bool) -> None:
    print(f"verified: {comparison}")
    if exact:
        comparison.check()
