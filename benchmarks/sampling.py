"""What bench_sampler.py measures: our sampler, index and placement, megatron-core's data set, and a synthetic shard."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from megatron_alum.config.data import DataConfig
from megatron_alum.data.sampling.dataset import PretrainingDataset, open_datasets
from megatron_alum.data.sampling.native import BatchBuffers, walk_epoch
from megatron_alum.data.sampling.pairs import WalkSettings
from megatron_alum.data.sampling.placement import BatchPlan
from megatron_alum.data.shards.corpus import Sentences

MASK_RATE = 0.15
STOCK_SAMPLES = 50_000
"""Samples of megatron-core's index, which needs a number."""
PERMUTED = 1 << 22
"""Sample indices are drawn from this range: several epochs of a small shard, one of a large."""
PLACED = 4096
"""Samples of the iteration that is placed."""


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
