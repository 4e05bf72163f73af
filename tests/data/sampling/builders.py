"""Small corpora for the sampler's tests: written by megatron-core's own builder, so that its layout is the real one."""

from __future__ import annotations

import bz2
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_alum.config.data import DataConfig
from megatron_alum.data.sampling.dataset import open_datasets
from megatron_alum.data.tokenizers.tokenizer import bert_tokenizer, roberta_tokenizer, save_tokenizer

WORDS = 400
"""Whole words of the toy vocabulary; half as many continuations follow them."""


def toy_bert_tokenizer():
    """WordPiece: [PAD] [UNK] [CLS] [SEP] [MASK] = 0..4, then w0 .. and ##c0 .."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries += [f"w{i}" for i in range(WORDS)] + [f"##c{i}" for i in range(WORDS // 2)]
    return bert_tokenizer({entry: i for i, entry in enumerate(entries)}, lower=True, accents=None)


def toy_roberta_tokenizer():
    """Byte-level BPE in RoBERTa's order: <s> <pad> </s> <unk> = 0..3, <mask> last."""
    entries = ["<s>", "<pad>", "</s>", "<unk>"]
    entries += [f"\u0120w{i}" for i in range(WORDS)] + [f"c{i}" for i in range(WORDS // 2)] + ["<mask>"]
    return roberta_tokenizer({entry: i for i, entry in enumerate(entries)}, [])


TOKENIZERS = {"bert": toy_bert_tokenizer, "roberta": toy_roberta_tokenizer}


def write_shards(prefix: Path, documents: list[list[list[int]]], tokenizer, *, dtype=np.uint16) -> str:
    """Documents of sentences of ids -> PREFIX.bin, .idx, .json and -tokenizer."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        for sentence in document:
            builder.add_item(torch.tensor(sentence))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    manifest = {
        "manifest_version": 1,
        "num_documents": len(documents),
        "num_sentences": sum(len(document) for document in documents),
        "num_tokens": sum(len(sentence) for document in documents for sentence in document),
        "dtype": np.dtype(dtype).name,
    }
    Path(f"{prefix}.json").write_text(json.dumps(manifest))
    save_tokenizer(tokenizer, Path(f"{prefix}-tokenizer"))
    return str(prefix)


def toy_corpus(prefix: Path, num_documents: int, *, kind: str = "bert", seed: int = 0, dtype: type = np.uint16) -> str:
    """`random_documents` in shards of one of TOKENIZERS."""
    return write_shards(prefix, random_documents(num_documents, seed=seed), TOKENIZERS[kind](), dtype=dtype)


def random_documents(num_documents: int, *, seed: int = 0, vocab: int = WORDS, first_id: int = 5) -> list:
    """Documents of 1 to 30 sentences of 1 to 60 tokens; a few sentences far longer than a sample."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(num_documents):
        sizes = rng.integers(1, 60, size=rng.integers(1, 31))
        sizes[rng.random(len(sizes)) < 0.01] = 700
        documents.append([rng.integers(first_id, first_id + vocab, size=n).tolist() for n in sizes])
    return documents


def open_train(prefix, *, model_type="bert", seq_length=128, train_samples=10_000, seed=1234, split="1,0,0", **config):
    """The training samples of shards at `prefix` (one prefix, or the words of --data-path)."""
    path = (prefix,) if isinstance(prefix, str) else tuple(prefix)
    options = DataConfig(data_path=path, split=split, **config)
    return open_datasets(
        options, model_type=model_type, seq_length=seq_length, train_samples=train_samples, seed=seed
    ).train


@dataclass(frozen=True)
class Sequence:
    """One sequence of a batch, taken out by the tensors alone."""

    tokens: list[int]
    """as the network sees them"""
    originals: list[int]
    """before masking"""
    token_types: list[int]
    masked: list[int]
    """places in the sequence"""
    labels: list[int]
    nsp_label: int


def places_of(owner, count: int) -> list:
    """For each of `count` sequences the places, in order, at which it is the owner."""
    order = torch.argsort(owner, stable=True)
    bounds = torch.searchsorted(owner[order].contiguous(), torch.arange(count + 1, dtype=owner.dtype)).tolist()
    return [order[begin:end] for begin, end in itertools.pairwise(bounds)]


def sequences(batch) -> list[Sequence]:
    """The sequences of a batch, found by looking at each token's `sequence`."""
    originals = batch.tokens.clone()
    originals[batch.masked_positions] = batch.masked_labels
    labels = batch.nsp_labels.tolist()
    owned = places_of(batch.sequence, len(labels))
    masks = places_of(batch.sequence[batch.masked_positions], len(labels))
    found = []
    for own, masked, label in zip(owned, masks, labels, strict=True):
        found.append(
            Sequence(
                tokens=batch.tokens[own].tolist(),
                originals=originals[own].tolist(),
                token_types=batch.token_types[own].tolist(),
                masked=batch.position[batch.masked_positions[masked]].tolist(),
                labels=batch.masked_labels[masked].tolist(),
                nsp_label=label,
            )
        )
    return found


def assert_same_batches(a, b) -> None:
    """Bit-equal tensors of equal types, and equal host facts."""
    assert a.tensors().keys() == b.tensors().keys()
    for name, x in a.tensors().items():
        y = getattr(b, name)
        assert x.dtype == y.dtype and torch.equal(x, y), name
    for name in ("lengths", "masked_counts", "pad_token", "num_adversarial"):
        assert getattr(a, name) == getattr(b, name), name


def wikipedia_documents(shared_data: Path, num_files: int = 4) -> list[list[str]]:
    """Articles of the shared Wikipedia extract as lists of lines, which stand in for sentences here."""
    documents = []
    for path in sorted((shared_data / "wiki" / "extracted" / "AA").glob("*.bz2"))[:num_files]:
        for page in bz2.decompress(path.read_bytes()).decode("utf-8", errors="replace").split("</doc>"):
            lines = [line.strip() for line in page.split("\n") if line.strip() and not line.startswith("<doc")]
            sentences = [part for line in lines for part in line.split(". ") if part.strip()]
            if sentences:
                documents.append(sentences)
    return documents


def epoch_rows(shard, number: int = 0) -> np.ndarray:
    """The rows of one epoch of a shard, in the order in which they are drawn."""
    while len(shard.epochs) <= number:
        shard.open_through(shard.epochs[-1].end_sample if shard.epochs else 0)
    epoch = shard.epochs[number]
    return epoch.rows[epoch.order[np.arange(len(epoch.rows))]]
