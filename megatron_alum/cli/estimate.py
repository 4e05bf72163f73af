"""Estimate the memory of one process and the operations of an iteration, without building anything.

    megatron-alum estimate --processes 16 --vocab-size 30522 --model-size large --bf16
    megatron-alum estimate --processes 16 --vocab-size 30522 --gpu-memory-gb 80 \
        --config examples/bert_3.9b.yaml

Takes every option of pre-training; a float32 run is taken for one on the CPU. Formulas:
megatron_alum/planning/memory.py and flops.py.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig

if TYPE_CHECKING:
    from megatron_alum.planning.flops import TextSize


def main() -> None:
    """Parse the tool's own three options, then the run's, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=False
    )
    parser.add_argument("--processes", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--vocab-size", type=int, required="--help" not in sys.argv, help="entries of the tokenizer")
    parser.add_argument("--gpu-memory-gb", type=float, help="say whether the run fits into this much memory")
    parser.add_argument(
        "--tokens-per-sequence", type=float, help="real tokens of a sequence on average (default: --seq-length)"
    )
    if "--help" in sys.argv:
        parser.print_help()
    own, rest = parser.parse_known_args()
    path = [] if "--data-path" in rest or "--config" in rest else ["--data-path", "unused"]
    config = parse_config(RunConfig, [*rest, *path, "--dry-run"], description="Options of the run:")
    config.data_parallel_size(own.processes)
    from megatron_alum.planning.flops import TextSize

    text = TextSize.full(config, tokens_per_sequence=own.tokens_per_sequence)
    rows = report(config, text, processes=own.processes, vocab_size=own.vocab_size, limit_gb=own.gpu_memory_gb)
    print("\n".join(rows))


def report(config: RunConfig, text: TextSize, *, processes: int, vocab_size: int, limit_gb: float | None) -> list[str]:
    """The table for global batches of `text`: one line a phase, gigabytes by use."""
    from megatron_alum.planning.flops import iteration_flops, passes, run_iterations
    from megatron_alum.planning.memory import checkpoint_bytes, estimate_memory, num_parameters

    divisor = config.model.make_vocab_size_divisible_by
    padded = -(-vocab_size // divisor) * divisor
    whole = num_parameters(config, padded_vocab_size=padded)
    lines = [f"{whole / 1e6:,.1f} million parameters, {processes} process(es)"]
    lines.append(
        f"{'GB a process':12}{'weights':>10}{'gradients':>10}{'optimizer':>10}"
        f"{'activations':>12}{'head':>8}{'total':>8}"
    )
    for phase, iterations in run_iterations(config).items():
        if not iterations:
            continue
        on_gpu = config.precision.dtype_name != "float32"
        memory = estimate_memory(config, phase, vocab_size=vocab_size, world_size=processes, on_gpu=on_gpu, text=text)
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.head, memory.total)
        widths = (10, 10, 10, 12, 8, 8)
        values = "".join(f"{part / 1e9:{width}.2f}" for part, width in zip(parts, widths, strict=True))
        flops = iteration_flops(config, phase, text, vocab_size=vocab_size)
        in_passes = passes(config, phase, text, vocab_size=vocab_size)
        lines.append(f"{phase:12}{values}   {in_passes:.3g} F = {flops / 1e12:,.3g} TFLOP an iteration")
        if limit_gb is not None:
            verdict = (
                "fits"
                if memory.total / 1e9 < limit_gb
                else "does not fit: try --recompute-granularity or --use-distributed-optimizer"
            )
            lines.append(f"{'':12}{verdict} into {limit_gb:g} GB")
    stored = checkpoint_bytes(config, vocab_size=vocab_size)
    lines.append(
        f"a checkpoint of {stored / 1e9:,.2f} GB, {stored / processes / 1e9:,.2f} GB written by each process (and held "
        "in its host memory meanwhile with --async-save)"
    )
    return lines
