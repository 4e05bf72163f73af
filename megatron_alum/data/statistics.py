"""What a corpus looks like: lengths of sentences and documents, and its text read back.

Everything is computed from the memory-mapped index and a bounded sample of tokens, so it takes seconds on any corpus.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from megatron_alum.data.shards import Shards, shard_paths

QUANTILES = (0.05, 0.5, 0.95, 1.0)
SAMPLE_TOKENS = 5_000_000
"""Tokens, from the beginning, in which unknown ones are counted."""


def describe(shards: Shards, tokenizer: Any) -> dict[str, Any]:
    """Counts, quantiles of tokens a sentence and of sentences and tokens a document, share of unknown tokens."""
    index = shards.index
    num_tokens = shard_paths(shards.prefix)["bin"].stat().st_size // index.dtype.itemsize
    starts = np.append(index.offsets, num_tokens * index.dtype.itemsize) // index.dtype.itemsize
    tokens_a_document = np.diff(starts[index.documents])
    sample = np.memmap(f"{shards.prefix}.bin", index.dtype, mode="r")[:SAMPLE_TOKENS]
    return {
        "documents": index.num_documents,
        "sentences": index.num_sentences,
        "tokens": num_tokens,
        "dtype": index.dtype.name,
        "vocabulary": len(tokenizer),
        "tokens a sentence": quantiles(index.lengths),
        "sentences a document": quantiles(np.diff(index.documents)),
        "tokens a document": quantiles(tokens_a_document),
        "single-sentence documents": float(np.mean(np.diff(index.documents) == 1)),
        "unknown tokens": float(np.mean(sample == tokenizer.unk_token_id)),
        "vocabulary entries seen": len(np.unique(sample)),
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Mean and the 5, 50, 95 and 100 % quantiles."""
    found = np.quantile(values, QUANTILES)
    named = {f"{round(100 * q)} %": float(value) for q, value in zip(QUANTILES, found, strict=True)}
    return {"mean": float(np.mean(values)), **named}


def document_sentences(shards: Shards, tokenizer: Any, document: int) -> Iterator[str]:
    """The sentences of document number `document`, decoded; ValueError when there is no such document."""
    if not 0 <= document < shards.num_documents:
        raise ValueError(
            f"`--document` must be from 0 to {shards.num_documents - 1}, but is {document} instead. "
            f"{shards.prefix} has {shards.num_documents} documents."
        )
    for sentence in range(shards.index.documents[document], shards.index.documents[document + 1]):
        yield tokenizer.decode(shards.indexed[int(sentence)].tolist())
