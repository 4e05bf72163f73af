"""Samples per second of the C++ sampler, of its Python reference and of megatron-core's own BERT dataset, in one run.

    python -m benchmarks.bench_sampler [--data-path PREFIX] [--seq-length 512] [--batch-size 64] [--csv FILE]

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
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from megatron_alum.config.cli import main_guard
from megatron_alum.config.data import DataConfig
from megatron_alum.data.sampling.dataset import PretrainingDataset, open_datasets
from megatron_alum.data.sampling.native import BatchBuffers, walk_epoch
from megatron_alum.data.sampling.pairs import WalkSettings
from megatron_alum.data.sampling.placement import BatchPlan
from megatron_alum.data.shards.corpus import Sentences
from megatron_alum.data.shards.files import open_shards
from megatron_alum.report.machine import current_commit, processor_name

MASK_RATE = 0.15
STOCK_SAMPLES = 50_000
"""Samples of megatron-core's index, which needs a number."""
PERMUTED = 1 << 22
"""Sample indices are drawn from this range: several epochs of a small shard, one of a large."""
PLACED = 4096
"""Samples of the iteration that is placed."""


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
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if args.data_path:
        open_shards(args.data_path)  # a wrong path is reported before anything is measured
    with tempfile.TemporaryDirectory() as folder:
        prefix = args.data_path or write_synthetic(Path(folder) / "synthetic", num_documents=args.documents)
        results = list(_measure_all(prefix, args, folder))
    for line in _table(results):
        print(line)
    if args.csv:
        _write_csv(Path(args.csv), results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", help="prefix of a shard made by preprocess_data.py (default: a synthetic one)")
    parser.add_argument("--documents", type=int, default=50_000, help="documents of the synthetic shard")
    parser.add_argument(
        "--index-documents", type=int, default=200_000, help="documents of the pair index that is built"
    )
    parser.add_argument("--seq-length", type=int, default=512, help="S, special tokens included")
    parser.add_argument("--batch-size", type=int, default=64, help="samples per call")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts of the C++ sampler")
    parser.add_argument("--csv", help="file to write the results to")
    return parser.parse_args()


@dataclass(frozen=True)
class Rate:
    """Calls per second, by two clocks."""

    by_clock: float
    """calls (or samples) per second"""
    by_cpu: float
    """calls (or samples) per second of CPU time, summed over threads"""

    def times(self, factor: float) -> Rate:
        """The rate of the parts of each call."""
        return Rate(self.by_clock * factor, self.by_cpu * factor)


def _measure_all(prefix: str, args: argparse.Namespace, folder: str) -> Iterator[Result]:
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


def measure_sampler(prefix: str, args: argparse.Namespace, folder: str, **options: Any) -> tuple[Rate, float]:
    """(samples per second, real tokens per sample) of our sampler; `options` are fields of DataConfig."""
    dataset = _open(prefix, args, folder, **options)
    num_samples = dataset.samples_per_epoch()[0]
    batches = np.random.default_rng(0).integers(0, num_samples, size=(256, args.batch_size))
    counts = []
    out = BatchBuffers(args.batch_size, args.seq_length)
    for batch in batches:  # warms the page cache too
        counts.append(_draw(dataset, batch, out))

    def draw_from(thread: int) -> Callable[[int], object]:
        own = BatchBuffers(args.batch_size, args.seq_length)
        return lambda i: _draw(dataset, batches[(i + 128 * thread) % len(batches)], own)

    calls = [draw_from(thread) for thread in range(options.get("sampler_threads", 1))]
    return best_rate(calls, args.seconds).times(args.batch_size), float(np.mean(counts)) / args.batch_size


def _draw(dataset: PretrainingDataset, batch: np.ndarray, out: BatchBuffers) -> int:
    """Write the samples; returns their real tokens."""
    if dataset.native is None:
        return dataset.batch(batch.tolist()).num_tokens
    dataset.native.fill(batch, out)
    return int(out.cu_seqlens[-1])


def measure_placement(prefix: str, args: argparse.Namespace, folder: str) -> tuple[Rate, float]:
    """(samples placed per second, real tokens per sample) of iterations of PLACED samples on two ranks."""
    dataset = _open(prefix, args, folder)
    plan = BatchPlan(16, PLACED, dp_size=2)
    first = plan.iteration(dataset, 0)
    num_iterations = max(1, dataset.samples_per_epoch()[0] // PLACED)
    rate = best_rate([lambda i: plan.iteration(dataset, i % num_iterations * PLACED)], args.seconds)
    print(f"placement: {PLACED:,} samples, {1e3 / rate.by_cpu:.2f} ms of CPU, largest rank {first.imbalance:+.3%}")
    return rate.times(PLACED), first.counts.tokens / PLACED


def _open(prefix: str, args: argparse.Namespace, folder: str, **options: Any) -> PretrainingDataset:
    """The samples of the shard; `options` are fields of DataConfig."""
    config = DataConfig(
        data_path=(prefix,), split="1", mask_rate_start=MASK_RATE, mask_rate_end=MASK_RATE, mask_rate_steps=1,
        data_cache_path=folder, **options,
    )  # fmt: skip
    return open_datasets(config, model_type="bert", seq_length=args.seq_length, train_samples=PERMUTED, seed=1).train


def measure_index(num_documents: int) -> Rate:
    """Rows per second of an epoch's pair index at sequence length 512 and one thread; prints documents and seconds."""
    sentences = synthetic_sentences(num_documents)
    walk = WalkSettings(objective="nsp", max_tokens=509, short_seq_prob=0.1, seed=1)
    begin, cpu_begin = time.perf_counter(), time.thread_time()
    rows = walk_epoch(sentences, walk)
    seconds, cpu_seconds = time.perf_counter() - begin, time.thread_time() - cpu_begin
    print(f"pair index: {num_documents:,} documents, {len(rows):,} samples, {seconds:.2f} s, CPU {cpu_seconds:.2f} s")
    return Rate(len(rows) / seconds, len(rows) / cpu_seconds)


def synthetic_sentences(num_documents: int) -> Sentences:
    """A sentence table in memory: 24 sentences a document (log-normal), 22 tokens a sentence (Poisson)."""
    rng = np.random.default_rng(0)
    counts = np.maximum(1, rng.lognormal(2.6, 1.1, size=num_documents)).astype(np.int64)
    lengths = (1 + rng.poisson(21, size=int(counts.sum()))).astype(np.int32)
    offsets = np.cumsum(lengths, dtype=np.int64)
    offsets -= lengths
    offsets *= 2
    bounds = np.concatenate([[0], np.cumsum(counts)])
    return Sentences(lengths=lengths, offsets=offsets, token_bytes=2, bounds=bounds, first=0, last=num_documents)


def measure_megatron_core(prefix: str, seq_length: int, seconds: float, folder: str) -> tuple[Rate, float]:
    """(samples per second, real tokens per sample) of megatron-core's BERTMaskedWordPieceDataset, item by item."""
    dataset = megatron_core_dataset(prefix, seq_length, folder)
    order = np.random.default_rng(0).permutation(len(dataset))
    real = np.mean([int((dataset[int(i)]["padding_mask"] != 0).sum()) for i in order[:64]])
    return best_rate([lambda i: dataset[int(order[i % len(order)])]], seconds), float(real)


def megatron_core_dataset(prefix: str, seq_length: int, folder: str) -> Any:
    """megatron-core's own dataset over the shard, masking like ours: 15 % of single tokens."""
    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    from megatron_alum.data.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(f"{prefix}-tokenizer")
    described = SimpleNamespace(
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        pad=tokenizer.pad_token_id,
        inv_vocab={i: token for token, i in tokenizer.get_vocab().items()},
        unique_identifiers={"folder": prefix},
    )
    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=1, sequence_length=seq_length, blend=([prefix], None), split="1,0,0", tokenizer=described,
        path_to_cache=folder, masking_probability=MASK_RATE, short_sequence_probability=0.1, masking_max_ngram=1,
        masking_do_full_word=False, masking_do_permutation=False, masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False, classification_head=True,
    )  # fmt: skip
    if not torch.distributed.is_initialized():  # its index is built on rank 0 of a process group
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    indexed = IndexedDataset(prefix)
    documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
    return BERTMaskedWordPieceDataset(indexed, prefix, documents, STOCK_SAMPLES, Split.train, config)


def best_rate(calls: Sequence[Callable[[int], object]], seconds: float, rounds: int = 5) -> Rate:
    """Rate of calling, one thread for each of `calls`, in the best of `rounds` equal stretches of the time."""
    by_clock = by_cpu = 0.0
    with ThreadPoolExecutor(len(calls)) as executor:
        for _ in range(rounds):
            stop = time.perf_counter() + seconds / rounds
            rates = list(executor.map(lambda call, stop=stop: _rate_until(stop, call), calls))
            by_clock = max(by_clock, sum(rate.by_clock for rate in rates))
            by_cpu = max(by_cpu, sum(rate.by_cpu for rate in rates))
    return Rate(by_clock, by_cpu)


def _rate_until(stop: float, call: Callable[[int], object]) -> Rate:
    begin, cpu_begin, count = time.perf_counter(), time.thread_time(), 0
    while (now := time.perf_counter()) < stop:
        call(count)
        count += 1
    return Rate(count / (now - begin), count / (time.thread_time() - cpu_begin))


def write_synthetic(prefix: Path, *, num_documents: int) -> str:
    """A shard of Wikipedia's proportions: 14 sentences a document (geometric), 22 tokens a sentence (Poisson)."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    from megatron_alum.data.tokenizers.tokenizer import bert_tokenizer, save_tokenizer

    words = [f"w{i}" for i in range(24_000)] + [f"##c{i}" for i in range(6_000)]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    save_tokenizer(
        bert_tokenizer({entry: i for i, entry in enumerate(entries)}, lower=True, accents=None),
        Path(f"{prefix}-tokenizer"),
    )
    rng = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    sentences = rng.geometric(1 / 14, size=num_documents)
    num_tokens = 0
    for count in sentences.tolist():
        lengths = 1 + rng.poisson(21, size=count)
        text = torch.from_numpy(rng.integers(5, len(entries), size=int(lengths.sum())))
        builder.add_document(text, lengths.tolist())
        num_tokens += len(text)
    builder.finalize(f"{prefix}.idx")
    manifest = {
        "manifest_version": 1,
        "num_documents": num_documents,
        "num_sentences": int(sentences.sum()),
        "num_tokens": num_tokens,
        "dtype": "uint16",
    }
    Path(f"{prefix}.json").write_text(json.dumps(manifest))
    return str(prefix)


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
