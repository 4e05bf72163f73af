"""Which rank and micro-batch takes which sample of an iteration, and the counts that its losses are means over.

Iteration i of global batch G holds the samples [i G, (i + 1) G), whatever the layout. Their lengths stand in the index
rows, so every rank works out the same placement alone, without reading text and without a word to the others:

    G = 8, dp = 2, M = 1     sample   0   1   2   3   4   5   6   7
                             tokens  90  20  35 128  60  15  44  28          210 tokens a rank are the mean
    longest first:           128 -> rank 0, 90 -> 1, 60 -> 1, 44 -> 0, 35 -> 1, 28 -> 0, 20 -> 1, 15 -> 0
                             rank 0: samples 3 5 6 7 (215 tokens)      rank 1: samples 0 1 2 4 (205 tokens)

The same rule (to the part with the fewest tokens, ties to the lower number) first makes dp x M groups of samples, then
gives every rank M of the groups. So a micro-batch has G / (dp x M) sequences on average, not each time; it has at least
one, since an empty group has the fewest tokens.

The adversarial samples of an iteration are its first ones in global order. They are placed before the others, so that
they are spread by tokens too, and stand first within their micro-batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_alum.data.sampling.batch import DEFAULT_TOKEN_MULTIPLE

Sizes = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Measured(Protocol):
    """What placement asks of a data set."""

    @property
    def has_pairs(self) -> bool:
        """Whether samples carry a sentence-pair label."""

    def measure(self, sample_indices: Sequence[int]) -> Sizes:
        """(tokens, masked tokens) of each sample, as `batch` will build it."""


@dataclass(frozen=True)
class Counts:
    """Sums over the global batch that the losses are means over; at least 1 each, so that no mean is 0 / 0."""

    masked: int
    """masked tokens"""
    labelled: int
    """sequences with a sentence-pair label"""
    adversarial_masked: int
    """masked tokens of the sequences that take the adversarial branch"""
    adversarial_sequences: int
    """those sequences"""
    tokens: int
    """real tokens, special ones included"""
    squared_lengths: int
    """sum of the squared tokens of each sequence: what attention costs"""


@dataclass(frozen=True)
class IterationPlan:
    """One rank's samples of an iteration, and what the whole of it sums up to."""

    micro_batches: tuple[tuple[int, ...], ...]
    """global sample indices of each micro-batch, adversarial ones first, each part ascending"""
    num_adversarial: tuple[int, ...]
    """how many of each micro-batch take the adversarial branch; 0 is possible"""
    counts: Counts
    """of the global batch, the same on every rank"""
    imbalance: float
    """tokens of the rank that has the most, over the mean of the ranks, less 1"""


def num_adversarial(global_batch_size: int, fraction: float) -> int:
    """Samples of an iteration that take the adversarial branch: the nearest whole number, at least one."""
    return max(1, round(global_batch_size * fraction))


@dataclass(frozen=True)
class BatchPlan:
    """Which samples a rank takes, and when."""

    micro_batch_size: int
    """B, sequences of one forward pass on one rank, on average"""
    global_batch_size: int
    """G, sequences of one optimizer step over all ranks"""
    dp_rank: int = 0
    """this rank among the data-parallel ranks"""
    dp_size: int = 1
    """data-parallel ranks"""
    alum_batch_fraction: float = 1.0
    """share of an iteration's samples that take the adversarial branch"""
    token_multiple: int = DEFAULT_TOKEN_MULTIPLE
    """tokens of a micro-batch are rounded up to a multiple of this"""

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide."""
        if self.micro_batch_size < 1 or self.global_batch_size < 1:
            raise ValueError(
                "--micro-batch-size and --global-batch-size must be at least 1, but are "
                f"{self.micro_batch_size} and {self.global_batch_size} instead."
            )
        if self.global_batch_size % (self.micro_batch_size * self.dp_size):
            raise ValueError(
                "--global-batch-size must be a multiple of --micro-batch-size x data-parallel size = "
                f"{self.micro_batch_size} x {self.dp_size}, but is {self.global_batch_size} instead."
            )
        assert 0 <= self.dp_rank < self.dp_size
        assert 0.0 < self.alum_batch_fraction <= 1.0 and self.token_multiple >= 1

    @property
    def num_micro_batches(self) -> int:
        """M, micro-batches of one rank in one optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.dp_size)

    @property
    def num_adversarial(self) -> int:
        """Samples of an iteration that take the adversarial branch."""
        return num_adversarial(self.global_batch_size, self.alum_batch_fraction)

    def iteration(self, dataset: Measured, first_sample: int) -> IterationPlan:
        """This rank's part of the global batch that begins at global sample `first_sample`."""
        lengths, masked = dataset.measure(range(first_sample, first_sample + self.global_batch_size))
        places = self.place(lengths)
        ranks = np.bincount(places // self.num_micro_batches, weights=lengths, minlength=self.dp_size)
        adversarial = self.num_adversarial
        by_place = np.argsort(places, kind="stable")
        own_numbers = self.dp_rank * self.num_micro_batches + np.arange(self.num_micro_batches + 1)
        own = [by_place[begin:end] for begin, end in pairwise(np.searchsorted(places[by_place], own_numbers).tolist())]
        counts = Counts(
            masked=int(masked.sum()),
            labelled=self.global_batch_size if dataset.has_pairs else 1,
            adversarial_masked=int(masked[:adversarial].sum()),
            adversarial_sequences=adversarial,
            tokens=int(lengths.sum()),
            squared_lengths=int((lengths * lengths).sum()),
        )
        return IterationPlan(
            micro_batches=tuple(tuple((first_sample + group).tolist()) for group in own),
            num_adversarial=tuple(int(np.searchsorted(group, adversarial)) for group in own),
            counts=counts,
            imbalance=float(ranks.max()) * self.dp_size / counts.tokens - 1.0,
        )

    def place(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[G] micro-batch of each sample of an iteration, numbered through all ranks: rank x M + m."""
        num_groups = self.dp_size * self.num_micro_batches
        climbing = np.where(np.arange(len(lengths)) < self.num_adversarial, lengths, 0)
        group = _spread(lengths, climbing, num_parts=num_groups)
        rank = _spread(
            np.bincount(group, weights=lengths, minlength=num_groups).astype(np.int64),
            np.bincount(group, weights=climbing, minlength=num_groups).astype(np.int64),
            num_parts=self.dp_size,
            room=self.num_micro_batches,
        )
        numbers = np.empty(num_groups, dtype=np.int64)
        numbers[np.argsort(rank, kind="stable")] = np.arange(num_groups)
        return numbers[group]


def _spread(
    tokens: npt.NDArray[np.int64], adversarial: npt.NDArray[np.int64], *, num_parts: int, room: int | None = None
) -> npt.NDArray[np.int64]:
    """[n] part of each item: in descending order of adversarial tokens, then of tokens, then by number, each item goes
    to the part with the fewest tokens, ties to the lower; a part with `room` items takes no more."""
    parts = np.zeros(len(tokens), dtype=np.int64)
    if num_parts == 1:
        return parts
    order = np.lexsort((-tokens, -adversarial))
    chosen, free = [], [len(tokens) if room is None else room] * num_parts
    loads = list(range(num_parts))  # a heap of tokens x num_parts + part, the part with the fewest tokens first
    for added in (tokens[order] * num_parts).tolist():
        part = loads[0] % num_parts
        chosen.append(part)
        free[part] -= 1
        if free[part]:
            heapq.heapreplace(loads, loads[0] + added)
        else:
            heapq.heappop(loads)
    parts[order] = chosen
    return parts
