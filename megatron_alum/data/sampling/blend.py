"""Several shards as one stream of samples, in fixed proportions and without state.

The proportions are rounded to a block of samples that repeats; inside the block the samples of each shard are spread
evenly, so that any stretch of the run holds each shard's share to within a few samples. Sample g of the run is then a
table look-up: no index as long as the run, and the same answer after a resume or on another layout.

Example, weights 3 and 1 with a block of 4:   g      0 1 2 3 | 4 5 6 7 | ...
                                              shard  0 0 1 0 | 0 0 1 0 |
                                              sample 0 1 0 2 | 3 4 1 5 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_alum.data.sampling.rng import MAX_DATASETS

BLOCK_SAMPLES = 1 << 16
"""Resolution of the weights; tables of 6 bytes an entry stay in the processor's cache."""


def parse_data_path(data_path: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """(prefixes, weights or None) of Megatron's `--data-path`: prefixes alone, or WEIGHT PREFIX pairs.

    A number that is the name of a shard's files counts as a prefix. Raises: ValueError for numbers without a prefix and
    prefixes without a number among others that have one, weights that are none, and too many shards.
    """
    is_weight = [_number(word) is not None and not Path(f"{word}.idx").is_file() for word in data_path]
    if not any(is_weight):
        prefixes, weights = list(data_path), []
    else:
        _check_pairs(data_path, is_weight)
        prefixes, weights = list(data_path[1::2]), [_number(word) for word in data_path[0::2]]
    if any(weight is not None and not 0 < weight < float("inf") for weight in weights):
        raise ValueError(f"--data-path must have weights above 0, but is {' '.join(data_path)!r} instead.")
    if len(prefixes) > MAX_DATASETS:
        raise ValueError(
            f"--data-path must name at most {MAX_DATASETS} shards, but names {len(prefixes)}. "
            "Join them by megatron-alum merge."
        )
    return prefixes, [float(weight) for weight in weights if weight is not None] or None


def _check_pairs(data_path: Sequence[str], is_weight: Sequence[bool]) -> None:
    """Raise, naming the first word out of place, unless weights and prefixes take turns."""
    for place, word in enumerate(data_path):
        must_be_weight = place % 2 == 0
        if is_weight[place] == must_be_weight:
            continue
        missing = "no weight before the prefix" if must_be_weight else "no prefix after the weight"
        name = word if must_be_weight else data_path[place - 1]
        raise ValueError(
            f"--data-path must have a weight before every prefix or before none, but has {missing} {name!r} in "
            f"{' '.join(data_path)!r}."
        )
    if is_weight[-1]:
        raise ValueError(
            f"--data-path must have a weight before every prefix or before none, but has no prefix after the weight "
            f"{data_path[-1]!r} in {' '.join(data_path)!r}."
        )


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


@dataclass(frozen=True, eq=False)
class Blend:
    """The repeating block: which shard, and which of its samples, each sample of the run is."""

    shard: npt.NDArray[np.int16]
    """[block] shard of each sample of the block"""
    rank: npt.NDArray[np.int32]
    """[block] how many samples of that shard precede it in the block"""
    counts: npt.NDArray[np.int64]
    """[shards] samples of each shard in a block"""

    @classmethod
    def of(cls, weights: Sequence[float]) -> Blend:
        """The block for these weights (any positive scale), rounded by largest remainder."""
        if len(weights) == 1:
            counts = np.ones(1, dtype=np.int64)
        else:
            exact = np.array(weights, dtype=np.float64) * (BLOCK_SAMPLES / sum(weights))
            counts = np.floor(exact).astype(np.int64)
            short = BLOCK_SAMPLES - int(counts.sum())
            counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
        if (counts == 0).any():
            raise ValueError(
                f"--data-path must give every shard at least 1/{BLOCK_SAMPLES} of the weight, but shard "
                f"{int(np.argmin(counts))} has less. Leave it out or raise its weight."
            )
        shard = np.repeat(np.arange(len(counts)), counts)
        rank = np.concatenate([np.arange(count) for count in counts])
        # Sample j of a shard with k in the block belongs at (j + 1/2) / k of it.
        order = np.lexsort((shard, (rank + 0.5) / counts[shard]))
        return cls(shard[order].astype(np.int16), rank[order].astype(np.int32), counts)

    def locate(self, sample_index: int) -> tuple[int, int]:
        """(shard, index among that shard's samples) of a global sample index."""
        block, place = divmod(sample_index, len(self.shard))
        shard = int(self.shard[place])
        return shard, block * int(self.counts[shard]) + int(self.rank[place])
