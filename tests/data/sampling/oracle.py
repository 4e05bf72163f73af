"""A second implementation of Google's sentence pairs, after create_pretraining_data.py, with Python's own random.

Lengths stand for texts: a document is the list of its sentence lengths. It shares only the rules with the
implementation, so that distributions can be compared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class OraclePair:
    is_random: bool
    single: bool
    """the chunk was one sentence, so that B could not be its continuation"""
    a_length: int
    b_length: int
    short: bool


def google_pairs(documents, index, max_tokens, short_seq_prob, rng: random.Random) -> list[OraclePair]:
    document, pairs = documents[index], []
    target, short = max_tokens, rng.random() < short_seq_prob
    if short:
        target = rng.randint(2, max_tokens)
    chunk, length, i = [], 0, 0
    while i < len(document):
        chunk.append(document[i])
        length += document[i]
        if i == len(document) - 1 or length >= target:
            a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            a, is_random = sum(chunk[:a_end]), len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                b = _other_text(documents, index, target - a, rng)
                i -= len(chunk) - a_end
            else:
                b = sum(chunk[a_end:])
            single = len(chunk) == 1
            pairs.append(OraclePair(is_random, single, *pop_one_by_one(a, b, max_tokens), short))
            chunk, length = [], 0
        i += 1
    return pairs


def _other_text(documents, index, wanted, rng) -> int:
    other = rng.choice([d for d in range(len(documents)) if d != index])
    b = 0
    for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
        b += sentence
        if b >= wanted:
            break
    return b


def pop_one_by_one(a: int, b: int, max_tokens: int) -> tuple[int, int]:
    """Lengths after taking one token at a time off the longer side, B when equal."""
    while a + b > max_tokens:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b
