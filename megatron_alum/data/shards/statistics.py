"""What a corpus looks like: lengths of sentences and documents, and its decoded text.

Everything is computed from the memory-mapped index and a bounded sample of tokens, so it takes seconds on any corpus.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from megatron_alum.data.shards.files import ShardIndex, Shards, read_index, shard_paths
from megatron_alum.data.shards.names import INVALID_UTF8

QUANTILES = (0.05, 0.5, 0.95, 1.0)
SAMPLE_TOKENS = 5_000_000
"""Tokens, from the beginning, in which unknown ones are counted."""
MANY_UNKNOWN = 0.05
"""Share of unknown tokens above which a vocabulary does not fit the text: the right one has far below 1 %."""
MIN_PAIRED = 0.05
"""Share of documents with two sentences below which sentence pairs cannot be learnt: a splitter occasionally cuts a
line in two, even if every line is one sentence."""
_SHOWN_DOCUMENTS, _SHOWN_SENTENCES, _SHOWN_CHARS = 2, 4, 160


def describe(shards: Shards, tokenizer: Any) -> dict[str, Any]:
    """Counts, quantiles of tokens per sentence and of sentences and tokens per document, share of unknown tokens."""
    index = shards.index
    num_tokens = shard_paths(shards.prefix)["bin"].stat().st_size // index.dtype.itemsize
    starts = np.append(index.offsets, num_tokens * index.dtype.itemsize) // index.dtype.itemsize
    tokens_per_document = np.diff(starts[index.documents])
    sample = np.memmap(f"{shards.prefix}.bin", index.dtype, mode="r")[:SAMPLE_TOKENS]
    return {
        "documents": index.num_documents,
        "sentences": index.num_sentences,
        "tokens": num_tokens,
        "dtype": index.dtype.name,
        "vocabulary": len(tokenizer),
        "tokens per sentence": quantiles(index.lengths),
        "sentences per document": quantiles(np.diff(index.documents)),
        "tokens per document": quantiles(tokens_per_document),
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


def without_pairs(index: ShardIndex, prefix: str) -> str | None:
    """The warning for a corpus that has hardly a document with two sentences, or None."""
    paired = float(np.mean(np.diff(index.documents) > 1)) if index.num_documents else 1.0
    if paired >= MIN_PAIRED:
        return None
    share = "no document" if paired == 0 else f"only {paired:.1%} of the documents"
    return (
        f"{prefix}: {share} has two sentences, so that next-sentence prediction and sentence order cannot be learnt "
        "from it (every pair would be a random one). If every line is a sentence, put blank lines between documents "
        "and pass --format text; otherwise train with --objective none."
    )


def summary(prefix: str, manifest: dict[str, Any]) -> Iterator[str]:
    """The result of a preprocessing run, line by line: counts, what was skipped, warnings, two resulting documents.
    Needs neither torch nor transformers."""
    from tokenizers import Tokenizer

    paths = shard_paths(prefix)
    index = read_index(paths["idx"])
    account = manifest["account"]
    yield f"records: {account['records']:,} = {account['documents']:,} kept + {account['skipped']:,} skipped"
    for verb in ("skipped", "repaired"):
        for reason, entry in manifest[verb].items():
            yield f"{verb} {entry['count']:,} documents: {reason} (first: {', '.join(entry['examples'][:3])})"
    for reason, entry in manifest["left_out"].items():
        yield f"left out {entry['count']:,} files: {reason} (first: {', '.join(entry['examples'][:3])})"
    sentences = quantiles(np.diff(index.documents))
    yield (
        f"sentences per document: {sentences['mean']:.1f} on average, {sentences['50 %']:.0f} in the median, "
        f"{sentences['100 %']:.0f} at most; tokens per sentence: {float(np.mean(index.lengths)):.1f}"
    )
    tokenizer = Tokenizer.from_file(str(paths["tokenizer"] / "tokenizer.json"))
    tokens = np.memmap(paths["bin"], index.dtype, mode="r")
    for number in sorted({0, index.num_documents // 2})[:_SHOWN_DOCUMENTS]:
        yield f"document {number}: {_beginning(index, tokens, tokenizer, number)}"
    unknown = [found for name in ("[UNK]", "<unk>") if (found := tokenizer.token_to_id(name)) is not None]
    share = float(np.mean(np.isin(tokens[:SAMPLE_TOKENS], unknown)))
    if share > MANY_UNKNOWN:
        yield (
            f"warning: {share:.0%} of the tokens are unknown to the vocabulary: it is not one of this text's language "
            "or script, or too small. Give another --vocab-file or --tokenizer, or train one "
            "(megatron-alum train-tokenizer)."
        )
    if INVALID_UTF8 in manifest["repaired"]:
        yield (
            "warning: bytes that are not UTF-8 were replaced. If their files are in another encoding, convert those "
            "(iconv -f ENCODING -t UTF-8) and run again; --strict ends a run at the first."
        )
    if warning := without_pairs(index, prefix):
        yield f"warning: {warning}"


def _beginning(index: ShardIndex, tokens: np.ndarray, tokenizer: Any, document: int) -> str:
    """The first sentences of a document, decoded, a bar between two."""
    first, last = int(index.documents[document]), int(index.documents[document + 1])
    shown = []
    for sentence in range(first, min(last, first + _SHOWN_SENTENCES)):
        start = int(index.offsets[sentence]) // index.dtype.itemsize
        ids = tokens[start : start + int(index.lengths[sentence])].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=False)  # what the vocabulary lacks shows as [UNK]
        shown.append(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
    return " | ".join(shown) + (" | ..." if last - first > _SHOWN_SENTENCES else "")
