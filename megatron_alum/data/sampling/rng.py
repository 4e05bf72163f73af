"""Counter-based randomness of the sampler: the same words in Python and in C++, for any rank, thread and order of use.

Every random decision is a 32-bit word of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), a pure function of

    key     = the run's seed, 64 bits (low word, high word)
    counter = (block, low, high, domain)     block counts the 4-word blocks of one stream, from 0

| stream      | low, high           | decides                                                   |
|-------------|---------------------|-----------------------------------------------------------|
| DOCUMENT    | document, 0         | short or full target length of a pass over the document   |
| PAIR        | document, ordinal   | end of A, true or random B, which document, which sentence|
| TRUNCATION  | document, ordinal   | which end of A and of B loses each token                  |
| PERMUTATION | 0, 0                | order of the epoch's samples                              |
| MASK        | global sample index | masked positions and what replaces them                   |

The domain word holds stream, split, position in the blend and epoch, so that no two decisions share a word.
C++ twin: csrc/data/random.h. Integers below n come from a multiply and a shift, (word * n) >> 32: no rejection loop, at
the price of probabilities that differ by at most n / 2^32 of themselves (0.14 % for six million documents).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_EPOCHS, MAX_DATASETS = 1 << 15, 1 << 12
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_FEISTEL_ROUNDS = 8
Words = npt.NDArray[Any]
"""uint64 values below 2^32."""


class Stream(IntEnum):
    """Which decision a word serves; the top three bits of the domain word."""

    DOCUMENT = 0
    PAIR = 1
    TRUNCATION = 2
    PERMUTATION = 3
    MASK = 4


def domain_word(stream: Stream, *, split: int = 0, dataset: int = 0, epoch: int = 0) -> int:
    """Fourth counter word: stream (3 bits), split (2), position in the blend (12) and epoch (15)."""
    assert 0 <= split < 4 and 0 <= dataset < MAX_DATASETS and 0 <= epoch < MAX_EPOCHS
    return stream << 29 | split << 27 | dataset << 15 | epoch


def philox4x32(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """The four 32-bit words of one counter value under a 64-bit seed, ten rounds."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


class WordStream:
    """The words of one (seed, domain, low, high), taken in order."""

    def __init__(self, seed: int, domain: int, low: int, high: int = 0) -> None:
        """Start at block 0; nothing is computed before the first word is taken."""
        self._seed, self._low, self._high, self._domain = seed, low, high, domain
        self._block = 0
        self._words: list[int] = []

    def word(self) -> int:
        """The next word, uniform in [0, 2^32)."""
        if not self._words:
            block = philox4x32((self._block, self._low, self._high, self._domain), self._seed)
            self._words = list(reversed(block))
            self._block += 1
        return self._words.pop()

    def below(self, n: int) -> int:
        """A whole number in [0, n), from one word."""
        return (self.word() * n) >> 32

    def ones(self, num_bits: int) -> int:
        """How many of the next `num_bits` fair coins show one: whole words first, then the low bits of one more."""
        count = sum(self.word().bit_count() for _ in range(num_bits // 32))
        if num_bits % 32:
            count += (self.word() & ((1 << num_bits % 32) - 1)).bit_count()
        return count


def threshold(probability: float) -> int:
    """The bound t for which `word < t` has this probability; computed once here, never in C++."""
    return int(probability * 2.0**32)


class Permutation:
    """A fixed random order of 0 .. size-1 without storing it: a Feistel network that walks past values >= size.

    Eight rounds of a 32-bit mixing function over two half-words of ceil(log2 size) bits in all; less than two walks an
    index on average. A shuffled index of 36 million samples would take 288 MB and seconds to build.
    """

    def __init__(self, size: int, *, seed: int, domain: int) -> None:
        """`domain` is the domain word of Stream.PERMUTATION for this data set and epoch."""
        bits = max(size - 1, 0).bit_length()
        self.size, self.domain = size, domain
        self._left_bits, self._right_bits = bits // 2, bits - bits // 2
        words = WordStream(seed, domain, 0)
        self.round_keys = [words.word() for _ in range(_FEISTEL_ROUNDS)]

    def __getitem__(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The samples at these positions of the order, all in [0, size)."""
        values = np.array(positions, dtype=np.uint64)
        values = np.atleast_1d(self._encrypt(values))
        while (outside := values >= self.size).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64).reshape(np.shape(positions))

    def _encrypt(self, values: Words) -> Words:
        left, right = values >> self._right_bits, values & ((1 << self._right_bits) - 1)
        left_mask, right_mask = (1 << self._left_bits) - 1, (1 << self._right_bits) - 1
        for i, key in enumerate(self.round_keys):
            if i % 2 == 0:
                left = left ^ (_mix(right ^ key) & left_mask)
            else:
                right = right ^ (_mix(left ^ key) & right_mask)
        return left << self._right_bits | right


def _mix(x: Words) -> Words:
    """Avalanche of 32-bit values (constants of the xxHash finaliser)."""
    x = (x ^ (x >> 15)) * 0x85EBCA77 & _WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE3D & _WORD
    return x ^ (x >> 16)
