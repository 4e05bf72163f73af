"""Estimate the memory of one process and the operations of an iteration, without building anything.

    megatron-alum estimate --processes 16 --vocab-size 30522 --model-size large --bf16
    megatron-alum estimate --processes 16 --vocab-size 30522 --gpu-memory-gb 80 \\
        --config examples/bert_3.9b.yaml

Takes every option of pre-training, and needs neither --data-path nor --save; a float32 run is assumed to be on the CPU.
Formulas: megatron_alum/planning/memory.py and flops.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_alum.config.checks import Count, Positive, check_fields
from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.config.words import amount, data_size, figure

if TYPE_CHECKING:
    from megatron_alum.planning.flops import TextSize


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """Estimating memory and operations"""

    vocab_size: Count
    """entries of the tokenizer"""
    processes: Count = 1
    """number of processes"""
    gpu_memory_gb: Positive | None = None
    """say whether the run fits into this much memory"""
    tokens_per_sequence: Positive | None = None
    """real tokens of a sample on average; --seq-length by default"""
    run: RunConfig

    def __post_init__(self) -> None:
        """Refuse values that no run can have, including numbers of processes."""
        check_fields(self)
        self.run.data_parallel_size(self.processes)


def main() -> None:
    """Parse the command line and print a table."""
    nothing_is_read_or_saved = {"data_path": ("unused",), "dry_run": True}
    config = parse_config(EstimateConfig, description=__doc__ or "", defaults=nothing_is_read_or_saved)
    from megatron_alum.planning.flops import TextSize

    text = TextSize.full(config.run, tokens_per_sequence=config.tokens_per_sequence)
    rows = report(
        config.run,
        text,
        processes=config.processes,
        vocab_size=config.vocab_size,
        limit_gb=config.gpu_memory_gb,
    )
    print("\n".join(rows))


def report(config: RunConfig, text: TextSize, *, processes: int, vocab_size: int, limit_gb: float | None) -> list[str]:
    """The table for global batches of `text`: one line per phase, gigabytes by use."""
    from megatron_alum.planning.flops import iteration_flops, passes, run_iterations
    from megatron_alum.planning.memory import checkpoint_bytes, estimate_memory, num_parameters

    divisor = config.model.make_vocab_size_divisible_by
    padded = -(-vocab_size // divisor) * divisor
    whole = num_parameters(config, padded_vocab_size=padded)
    lines = [f"{amount(whole)} parameters, {processes} process(es)"]
    lines.append(
        f"{'a process':12}{'weights':>10}{'gradients':>10}{'optimizer':>10}{'activations':>12}{'head':>9}{'total':>9}"
    )
    for phase, iterations in run_iterations(config).items():
        if not iterations:
            continue
        on_gpu = config.precision.dtype_name != "float32"
        memory = estimate_memory(config, phase, vocab_size=vocab_size, world_size=processes, on_gpu=on_gpu, text=text)
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.head, memory.total)
        widths = (10, 10, 10, 12, 9, 9)
        values = "".join(f"{data_size(part):>{width}}" for part, width in zip(parts, widths, strict=True))
        flops = iteration_flops(config, phase, text, vocab_size=vocab_size)
        in_passes = passes(config, phase, text, vocab_size=vocab_size)
        lines.append(f"{phase:12}{values}   {in_passes:.3g} F = {figure(flops / 1e12)} TFLOP per iteration")
        if limit_gb is not None:
            verdict = (
                "fits"
                if memory.total / 1e9 < limit_gb
                else "does not fit: try --recompute-granularity or --use-distributed-optimizer"
            )
            lines.append(f"{'':12}{verdict} into {limit_gb:g} GB")
    stored = checkpoint_bytes(config, vocab_size=vocab_size)
    lines.append(
        f"a checkpoint of {data_size(stored)}, {data_size(stored / processes)} written by each process (and held "
        "in its host memory during the save with --async-save)"
    )
    return lines
