"""Samples per second of the C++ sampler, of its Python reference and of megatron-core's own BERT dataset, in one run.

    python -m benchmarks.bench_sampler [--data-path PREFIX] [--seq-length 512] [--batch-size 64] [--output FILE]

All read the same shard with the page cache warm; without --data-path a synthetic shard of Wikipedia's proportions is
made. Ours writes whole batches into preallocated buffers, index reads included, masking 15 % of single tokens with NSP;
several threads write several batches, as in `BatchLoader`. `placement` distributes one iteration of 4,096 samples over
two ranks, index reads included: samples placed per second, which every rank does for the whole global batch.
`BERTMaskedWordPieceDataset` yields one sample per call (single tokens, 15 %, its sentence-order question), and nothing
is counted for collating its samples. It packs sentences of A and B up to the same length, so its rows hold a different
number of tokens: tokens per second are printed beside samples.

Timings are the best of several rounds, since other work on the machine can only slow one down. Samples per second are
wall time; samples per CPU second count only the time in which each thread ran (the threads' rates added), and the ratio
to megatron-core is taken from those, since it must not depend on other load. On an idle machine both agree. The CSV has
one line per case, with the processor and the commit.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.report.machine import current_commit, processor_name

if TYPE_CHECKING:
    from benchmarks.sampling import Rate


@dataclass(frozen=True)
class Result:
    """One line of the table and the CSV."""

    case: str
    objective: str
    masking: str
    seq_length: int
    batch_size: int
    threads: int
    samples_per_second: float
    samples_per_cpu_second: float
    tokens_per_second: float
    times_megatron_core: float
    processor: str
    commit: str


def main() -> None:
    """Measure every case and print the table."""
    args = _arguments()
    # After parsing: --help and refused options need no torch.
    from benchmarks.sampling import write_synthetic
    from megatron_alum.data.shards.files import open_shards

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if args.data_path:
        open_shards(args.data_path)  # a wrong path is reported before anything is measured
    with tempfile.TemporaryDirectory() as folder:
        prefix = args.data_path or write_synthetic(Path(folder) / "synthetic", num_documents=args.documents)
        results = list(_measure_all(prefix, args, folder))
    for line in _table(results):
        print(line)
    if args.output:
        _write_csv(Path(args.output), results)


def _arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--data-path", help="prefix of a shard made by preprocess_data.py (default: a synthetic one)")
    parser.add_argument("--documents", type=int, default=50_000, help="documents of the synthetic shard")
    parser.add_argument(
        "--index-documents", type=int, default=200_000, help="documents of the pair index that is built"
    )
    parser.add_argument("--seq-length", type=int, default=512, help="S, special tokens included")
    parser.add_argument("--batch-size", type=int, default=64, help="samples per call")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts of the C++ sampler")
    parser.add_argument("--output", help="CSV file to write the results to")
    return parser.parse_args()


def _measure_all(prefix: str, args: argparse.Namespace, folder: str) -> Iterator[Result]:
    from benchmarks.sampling import measure_index, measure_megatron_core, measure_placement, measure_sampler

    stock, stock_tokens = measure_megatron_core(prefix, args.seq_length, args.seconds, folder)

    def result(case: str, objective: str, masking: str, threads: int, rate: Rate, tokens: float) -> Result:
        return Result(
            case, objective, masking, args.seq_length, args.batch_size, threads, round(rate.by_clock, 1),
            round(rate.by_cpu, 1), round(rate.by_clock * tokens), round(rate.by_cpu / stock.by_cpu, 1),
            processor_name(), current_commit(),
        )  # fmt: skip

    yield result("megatron-core", "sop", "token", 1, stock, stock_tokens)
    yield result("python", "nsp", "token", 1, *measure_sampler(prefix, args, folder, sampler="python"))
    for threads in args.threads:
        yield result("cpp", "nsp", "token", threads, *measure_sampler(prefix, args, folder, sampler_threads=threads))
    yield result("placement", "nsp", "token", 1, *measure_placement(prefix, args, folder))
    rows = measure_index(args.index_documents)
    yield result("cpp index", "nsp", "-", 1, rows, 0.0)
    for objective, masking in (("nsp", "whole_word"), ("nsp", "ngram"), ("sop", "token"), ("none", "token")):
        rate, tokens = measure_sampler(prefix, args, folder, objective=objective, masking=masking)
        yield result("cpp", objective, masking, 1, rate, tokens)


def _table(results: list[Result]) -> Iterator[str]:
    first = results[0]
    yield f"{first.processor}, sequence {first.seq_length}, batches of {first.batch_size}, commit {first.commit}"
    names = f"{'case':<14}{'objective':<10}{'masking':<12}{'threads':>7}"
    yield f"{names}{'samples/s':>12}{'/CPU s':>12}{'tokens/s':>14}{'x core':>9}"
    for r in results:
        yield (
            f"{r.case:<14}{r.objective:<10}{r.masking:<12}{r.threads:>7}{r.samples_per_second:>12,.0f}"
            f"{r.samples_per_cpu_second:>12,.0f}{r.tokens_per_second:>14,.0f}{r.times_megatron_core:>9,.1f}"
        )


def _write_csv(path: Path, results: list[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(asdict(results[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)


if __name__ == "__main__":
    main_guard(main)
