"""From the sentences of documents to the rows of an epoch: Google's NSP, ALBERT's SOP, RoBERTa's full sentences.

Python reference; the C++ twin csrc/data/rows.cpp gives the same rows bit for bit. A row names two ranges of the token
file and a label, after truncation, so that a sample is rebuilt from its row alone:

    document   s0(7 tokens) s1(5) s2(9) s3(4) ...        target 16 tokens
    chunk      s0 s1 s2                                  21 tokens: filled up to the target or beyond
    A | B      s0 | s1 s2            true continuation: label 0, next chunk begins at s3
               s0 | t5 t6 of another document: label 1, next chunk begins at s1 (unused sentences are put back)
    row        (a_start, b_start, a_length, b_length, label), at most max_tokens in all: the longer side loses
               single tokens from its front or back, each by a fair coin

Sources: create_pretraining_data.py of google-research/bert (target length drawn once a document, the other document
uniform over documents, B from a uniform sentence until the target is met, truncation to the maximum and not to the
target) and of google-research/albert. Departures, each because a label must be true: the other document is drawn among
the others, never with retries; in SOP a chunk of one sentence is cut in two at a random token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_alum.data.sampling.rng import Stream, WordStream, domain_word, threshold
from megatron_alum.data.shards.corpus import Sentences

HALF = 1 << 31
"""A word below this is a coin that shows heads."""
ROW = np.dtype(
    [("a_start", "<i8"), ("b_start", "<i8"), ("a_length", "<u2"), ("b_length", "<u2"), ("label", "<u4")], align=True
)
"""One sample: 24 bytes. Starts count tokens from the beginning of the .bin file. Full sentences (objective none) use
a_start and a_length for the text, b_start for the document it begins in and b_length for the document ends inside."""
assert ROW.itemsize == 24


@dataclass(frozen=True)
class WalkSettings:
    """What the rows depend on, beside the sentences."""

    objective: str
    """nsp, sop or none"""
    max_tokens: int
    """text tokens a sample may hold: S less its special tokens"""
    short_seq_prob: float
    """probability of a short target length"""
    seed: int
    """the run's seed"""
    dataset: int = 0
    """position of the shard in the blend"""
    epoch: int = 0
    """pass over the shard, from 0"""

    def domain(self, stream: Stream) -> int:
        """Domain word of a stream of this walk; documents are numbered in the whole shard, so the split is no part."""
        return domain_word(stream, dataset=self.dataset, epoch=self.epoch)


def walk_epoch(sentences: Sentences, walk: WalkSettings) -> npt.NDArray[np.void]:
    """All rows of one epoch over a split, in document order: structured array of `ROW`."""
    if walk.objective == "none":
        rows = list(_full_sentences(sentences, walk.max_tokens))
    else:
        rows = [row for d in range(sentences.first, sentences.last) for row in document_pairs(sentences, walk, d)]
    return np.array(rows, dtype=ROW)


Row = tuple[int, int, int, int, int]


def document_pairs(sentences: Sentences, walk: WalkSettings, document: int) -> Iterator[Row]:
    """Rows of one pass over one document (nsp and sop)."""
    target = _target_length(walk, document)
    begin, end = int(sentences.bounds[document]), int(sentences.bounds[document + 1])
    ordinal = 0
    while begin < end:
        stop, length = begin, 0
        while stop < end and length < target:
            length += int(sentences.lengths[stop])
            stop += 1
        words = WordStream(walk.seed, walk.domain(Stream.PAIR), document, ordinal)
        make = _next_sentence_pair if walk.objective == "nsp" else _sentence_order_pair
        pair, begin = make(sentences, words, document, (begin, stop), target)
        if pair is not None:
            cuts = WordStream(walk.seed, walk.domain(Stream.TRUNCATION), document, ordinal)
            yield _truncated(pair, walk.max_tokens, cuts)
        ordinal += 1


def _target_length(walk: WalkSettings, document: int) -> int:
    """Tokens a chunk is filled to: the maximum, or with `short_seq_prob` uniform in [2, maximum]; once a document."""
    words = WordStream(walk.seed, walk.domain(Stream.DOCUMENT), document)
    if words.word() < threshold(walk.short_seq_prob):
        return 2 + words.below(walk.max_tokens - 1)
    return walk.max_tokens


def _next_sentence_pair(
    sentences: Sentences, words: WordStream, document: int, chunk: tuple[int, int], target: int
) -> tuple[Row, int]:
    """(untruncated row, sentence where the next chunk begins) of Google's NSP."""
    begin, stop = chunk
    first_word, coin = words.word(), words.word()
    a_end = begin + 1 + (first_word * max(stop - begin - 1, 1) >> 32)
    a_length = sentences.num_tokens(begin, a_end)
    if stop - begin > 1 and coin >= HALF:
        b_length = sentences.num_tokens(a_end, stop)
        return (sentences.start(begin), sentences.start(a_end), a_length, b_length, 0), stop
    other = sentences.first + words.below(sentences.num_documents - 1)
    other += other >= document
    b_begin = int(sentences.bounds[other])
    b_begin += words.below(int(sentences.bounds[other + 1]) - b_begin)
    b_end, b_length = b_begin, 0
    while b_end < sentences.bounds[other + 1] and (b_length == 0 or b_length < target - a_length):
        b_length += int(sentences.lengths[b_end])
        b_end += 1
    return (sentences.start(begin), sentences.start(b_begin), a_length, b_length, 1), a_end


def _sentence_order_pair(
    sentences: Sentences, words: WordStream, document: int, chunk: tuple[int, int], target: int
) -> tuple[Row | None, int]:
    """(untruncated row, sentence where the next chunk begins) of SOP; no row for a chunk of one single token."""
    begin, stop = chunk
    length = sentences.num_tokens(begin, stop)
    if length < 2:
        return None, stop
    cut_word, coin = words.word(), words.word()
    if stop - begin > 1:
        a_length = sentences.num_tokens(begin, begin + 1 + (cut_word * (stop - begin - 1) >> 32))
    else:
        a_length = 1 + (cut_word * (length - 1) >> 32)
    start = sentences.start(begin)
    if coin >= HALF:
        return (start, start + a_length, a_length, length - a_length, 0), stop
    return (start + a_length, start, length - a_length, a_length, 1), stop


def _truncated(row: Row, max_tokens: int, cuts: WordStream) -> Row:
    """Take single tokens off the longer side (B when equal) until both fit, each from front or back by a fair coin.

    The number each side loses is fixed by the lengths, so the coins can be counted instead of tossed in turn: those of
    A are drawn first, then those of B.
    """
    a_start, b_start, a_length, b_length, label = row
    excess = a_length + b_length - max_tokens
    if excess <= 0:
        return row
    a_loss = min(excess, max(a_length - b_length, 0))
    b_loss = min(excess, max(b_length - a_length, 0))
    rest = excess - a_loss - b_loss
    a_loss, b_loss = a_loss + rest // 2, b_loss + rest - rest // 2
    a_start += cuts.ones(a_loss)
    b_start += cuts.ones(b_loss)
    return a_start, b_start, a_length - a_loss, b_length - b_loss, label


def _full_sentences(sentences: Sentences, max_tokens: int) -> Iterator[Row]:
    """Whole sentences packed in document order, across document ends, each of which costs one separator.

    A sentence longer than a sample is cut into pieces of `max_tokens`; nothing is lost and nothing repeated.
    """
    start, length, ends, origin = -1, 0, 0, -1
    for document in range(sentences.first, sentences.last):
        begin, end = int(sentences.bounds[document]), int(sentences.bounds[document + 1])
        for sentence in range(begin, end):
            token, remaining = sentences.start(sentence), int(sentences.lengths[sentence])
            crossing = 1 if length and sentence == begin else 0
            if length and length + ends + crossing + remaining > max_tokens:
                yield start, origin, length, ends, 0
                length = ends = crossing = 0
            while remaining > max_tokens:
                yield token, document, max_tokens, 0, 0
                token, remaining = token + max_tokens, remaining - max_tokens
            if not length:
                start, origin = token, document
            length, ends = length + remaining, ends + crossing
    if length:
        yield start, origin, length, ends, 0
