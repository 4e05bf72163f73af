"""Time of whole training steps against stock megatron-core's BertModel, in one run on one machine.

    python -m benchmarks.bench_step --data PREFIX                     4 layers of 256 on real text, rows of 128
    python -m benchmarks.bench_step --data PREFIX --seq-length 512    benchmarks/results/step_text_512.csv
    python -m benchmarks.bench_step --model-size base --seq-length 512 --micro-batch-size 64 --bf16 --only "K=1"

Every row is a forward, backward and optimizer step on one micro-batch per process, in a separate process: with --data
the first one that placement by length makes of a global batch of real text, else random tokens in full rows. Stock is
BertModel with its local layer spec, as megatron-core ships it, on the same samples as padded rows: logits on all
positions, its own attention, dropout and cross-entropy, on a GPU with its compiled fusions; wrapped and stepped like
ours. The rows take turns --rounds times, since a machine may be slow for minutes, and the fastest counts. The two rows
of data parallelism use one thread per process. Memory is the peak above that before the model was built; tflops counts
our matrix products, by the formula of megatron_alum/planning/flops.py.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

from megatron_alum.config.cli import build_config, main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.config.run import RunConfig
from megatron_alum.config.words import data_size
from megatron_alum.report.machine import current_commit, processor_name

STOCK = "stock megatron-core BertModel"


@dataclass(frozen=True)
class Variant:
    """What a row runs."""

    options: dict[str, Any]
    """of the configuration; unused by stock"""
    is_stock: bool = False
    processes: int = 1
    threads: int | None = None
    """of a process; None = torch's default"""


STANDARD = {"alum_start_fraction": 1.0}
VARIANTS = {
    STOCK: Variant({}, is_stock=True),
    "standard": Variant(STANDARD),
    "alum K=1": Variant({}),
    "alum K=2": Variant({"alum_num_ascent_steps": 2}),
    "alum K=0": Variant({"alum_num_ascent_steps": 0}),
    "alum late layer": Variant({"alum_perturb": "layer", "alum_perturb_layer": "half"}),
    "alum half of the batch": Variant({"alum_batch_fraction": 0.5}),
    "alum label": Variant({"alum_ascent": "label"}),
    "alum chunked head": Variant({"alum_head_chunk_rows": 128}),
    "alum recompute full": Variant({"recompute_granularity": "full"}),
    "standard recompute full": Variant({**STANDARD, "recompute_granularity": "full"}),
    "standard, 1 process": Variant(STANDARD, threads=1),
    "standard, 2 processes": Variant(STANDARD, processes=2, threads=1),
}
COLUMNS = (
    *("step", "seconds", "samples_per_second", "tokens_per_second", "tflops", "ratio_to_standard", "ratio_to_stock"),
    *("peak_memory_mb", "estimated_memory_mb"),
    *("seq_length", "fill", "processes", "threads", "device", "torch", "commit"),
)


class Measured(NamedTuple):
    """One row's figures; the faster row compares as smaller."""

    seconds: float
    bytes: float
    threads: int
    tflops: float | None
    fill: float
    """real tokens over those of padded rows"""
    estimate: float | None = None
    """bytes, by megatron_alum/planning/memory.py; None of stock"""


def main() -> None:
    """Run every variant, then write the table."""
    arguments = parse_arguments()
    rows: dict[str, Measured] = {}
    failed: set[str] = set()
    for name in chosen(arguments.only) * arguments.rounds:
        if name in failed:
            continue
        try:
            row = run_variant(arguments, VARIANTS[name])
        except Exception as error:  # the other rows are still useful
            print(f"{name}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed.add(name)
            continue
        rows[name] = min(rows.get(name, row), row)
        print(f"{name:44}{row.seconds:8.3f} s {data_size(row.bytes):>8}", flush=True)
        if arguments.output:  # after each row: a run that is stopped keeps what it has
            with open(arguments.output, "w", newline="", encoding="utf-8") as stream:
                write(rows, arguments, stream)
    write(rows, arguments, sys.stdout)
    if failed:
        sys.exit(1)


def chosen(words: list[str]) -> list[str]:
    """Stock, and the variants whose name is, or contains, one of `words`; all if there are no words."""
    import torch  # in the functions that need it: --help and refused options do not

    one_process_only = torch.cuda.is_available()  # the rows of data parallelism need a device per process
    possible = [name for name, variant in VARIANTS.items() if variant.threads is None or not one_process_only]

    def is_meant(name: str) -> bool:
        return any(name == word if word in VARIANTS else word in name for word in words)

    return [name for name in possible if name == STOCK or not words or is_meant(name)]


def run_variant(arguments: argparse.Namespace, variant: Variant) -> Measured:
    """One row, measured by the first of its processes."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # on a port that the system chooses
    meeting_point = {}
    if variant.processes > 1:
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        meeting_point["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the processes join this store, none opens its own
    jobs = [(arguments, variant, rank, meeting_point) for rank in range(variant.processes)]
    with multiprocessing.get_context("spawn").Pool(variant.processes) as pool:
        return pool.starmap(_rank_of_variant, jobs, chunksize=1)[0]


def _rank_of_variant(
    arguments: argparse.Namespace, variant: Variant, rank: int, meeting_point: dict[str, str]
) -> Measured:
    """One process of a row."""
    size = str(variant.processes)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({**place, **meeting_point})
    import torch

    if variant.threads is not None:
        torch.set_num_threads(variant.threads)
    from benchmarks.batches import one_micro_batch
    from benchmarks.steps import measure, our_step, stock_step
    from megatron_alum.objective.schedule import phase_of
    from megatron_alum.parallel import initialize, seed_everything, shutdown
    from megatron_alum.planning.flops import TextSize, iteration_flops
    from megatron_alum.planning.memory import estimate_memory

    groups = initialize(tensor_parallel_size=1, timeout_seconds=600)
    seed_everything(1234, groups)
    config = configuration(arguments, variant)
    batches = one_micro_batch(arguments, config)
    build = stock_step if variant.is_stock else our_step
    try:
        seconds, peak = measure(lambda: build(arguments, config, groups, batches), arguments.steps)
    finally:
        shutdown()
    text = TextSize.of(batches.counts, sequences=batches.micro_batches[0].num_sequences)
    flops = iteration_flops(config, phase_of(2, config), text, vocab_size=arguments.vocab_size)
    tflops = None if variant.is_stock else flops / seconds / 1e12
    fill = text.tokens / (text.sequences * arguments.seq_length)
    estimate = None
    if not variant.is_stock:
        place = {"world_size": variant.processes, "on_gpu": groups.device.type == "cuda"}
        whole = text.scaled(variant.processes)  # of the global batch
        memory = estimate_memory(config, phase_of(2, config), vocab_size=arguments.vocab_size, text=whole, **place)
        estimate = memory.total
    return Measured(seconds, peak, torch.get_num_threads(), tflops, fill, estimate)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line above; `words` in place of this process's."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data", help="prefix of preprocessed shards (default: random tokens, full rows)")
    parser.add_argument("--model-size", default="mini", help="preset of pretrain_bert_alum.py (default: mini)")
    parser.add_argument("--seq-length", type=int, default=128, help="tokens of a sequence (default: 128)")
    parser.add_argument("--micro-batch-size", type=int, default=16, help="sequences (default: 16)")
    parser.add_argument("--vocab-size", type=int, default=30_522, help="entries of the vocabulary (default: 30522)")
    parser.add_argument("--mask-rate", type=float, default=0.15, help="share of masked tokens (default: 0.15)")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="dropout of hidden states and attention (default: 0.1)"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default: 5); see `measure`")
    parser.add_argument("--rounds", type=int, default=2, help="passes over all rows, the fastest counts (default: 2)")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="stock, and the variants whose name is, or contains, one of these words",
    )
    parser.add_argument("--output", help="CSV file to write")
    return parser.parse_args(words)


def configuration(arguments: argparse.Namespace, variant: Variant) -> RunConfig:
    """The configuration of the run whose step is measured."""
    values = {
        "data_path": (arguments.data or "random tokens",),
        "dry_run": True,
        "model_size": arguments.model_size,
        "seq_length": arguments.seq_length,
        "micro_batch_size": arguments.micro_batch_size,
        "global_batch_size": arguments.micro_batch_size * variant.processes,
        "train_iters": 10,
        "alum_start_fraction": 0.0,
        "hidden_dropout": arguments.dropout,
        "attention_dropout": arguments.dropout,
        "mask_rate_start": arguments.mask_rate,
        "mask_rate_end": arguments.mask_rate,
        "bf16": arguments.bf16,
    }
    options = dict(variant.options)
    if options.get("alum_perturb_layer") == "half":
        options["alum_perturb_layer"] = build_config(RunConfig, [values]).model.num_layers // 2
    return build_config(RunConfig, [{**values, **options}])


def write(rows: dict[str, Measured], arguments: argparse.Namespace, stream: TextIO) -> None:
    """The table with ratios to our standard step and to the stock step of this run."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    table = []
    for name, row in rows.items():
        variant = VARIANTS[name]
        samples = arguments.micro_batch_size * variant.processes / row.seconds
        alike = variant.threads is None  # the others have fewer threads than the two they would be compared with
        table.append(
            {
                "step": name,
                "seconds": f"{row.seconds:.4f}",
                "samples_per_second": f"{samples:.1f}",
                "tokens_per_second": f"{samples * row.fill * arguments.seq_length:.0f}",
                "tflops": "" if row.tflops is None else f"{row.tflops * variant.processes:.3g}",
                "ratio_to_standard": _ratio(row, rows.get("standard")) if alike else "",
                "ratio_to_stock": _ratio(row, rows.get(STOCK)) if alike else "",
                "peak_memory_mb": f"{row.bytes / 1e6:.0f}",
                "estimated_memory_mb": "" if row.estimate is None else f"{row.estimate / 1e6:.0f}",
                "seq_length": arguments.seq_length,
                "fill": f"{row.fill:.2f}",
                "processes": variant.processes,
                "threads": row.threads,
                "device": device,
                "torch": torch.__version__,
                "commit": current_commit(),
            }
        )
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    stream.flush()


def _ratio(row: Measured, base: Measured | None) -> str:
    return "" if base is None else f"{row.seconds / base.seconds:.3f}"


if __name__ == "__main__":
    main_guard(main)
