"""What can be concluded from the seeds: paired differences with an interval, and a sentence.

A pair is one arm and the one it is compared with at the same seed (of pre-training, and of fine-tuning where there is
one). The interval of the mean difference is the wider one, on each side, of the percentile bootstrap (Efron 1979) and
Student's t: with few pairs the bootstrap alone is far too narrow: with two pairs it excludes 0 in half of all cases
without a difference. One pair has no interval. Where the interval contains 0, or is missing, no difference is shown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_alum.config.extras import require

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Paired differences of two arms."""

    mean: float
    """of the pairs; the compared arm minus the baseline"""
    n: int
    """pairs"""
    low: float
    """lower end of the interval; minus infinity for one pair"""
    high: float
    """upper end"""

    @property
    def is_one(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


def paired(values: Mapping[Hashable, float], baseline: Mapping[Hashable, float]) -> list[float]:
    """Differences at the keys that both have, in order of the first."""
    return [value - baseline[key] for key, value in values.items() if key in baseline]


def difference(differences: Sequence[float]) -> Difference:
    """Mean, number and interval. Raises: ValueError without a pair."""
    if not differences:
        raise ValueError("`differences` must have at least one pair, but have none.")
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return Difference(mean, 1, -math.inf, math.inf)
    boot, student = bootstrap_interval(differences), student_interval(differences)
    low, high = min(boot[0], student[0]), max(boot[1], student[1])
    return Difference(mean, n, low, high)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile interval of the mean at LEVEL; the same numbers give the same interval."""
    rng = np.random.default_rng(0)
    require("scipy")
    from scipy import stats

    result = stats.bootstrap(
        (np.asarray(values),), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", rng=rng
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval of the mean at LEVEL."""
    require("scipy")
    from scipy import stats

    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - float(half), mean + float(half)


def sentence(
    found: Mapping[str, Difference], *, baseline: str, lower_is_better: bool, unit: str = "", digits: int = 3
) -> str:
    """A sentence on what a table of differences from `baseline` shows, and what it does not.

    `found` are the arms' differences in the order of the table, shown with `digits` after the point.
    """
    if not found:
        return f"Nothing to compare with {baseline} yet."
    single = [name for name, one in found.items() if one.n == 1]
    if len(single) == len(found):
        return f"One pair each: no difference from {baseline} can be told from chance."
    better = {name: one for name, one in found.items() if one.is_one and (one.mean < 0) == lower_is_better}
    worse = {name: one for name, one in found.items() if one.is_one and (one.mean < 0) != lower_is_better}
    parts = []
    for word, group in (("better", better), ("worse", worse)):
        if group:
            listed = (f"{name} (by {abs(one.mean):.{digits}f}{unit}, n {one.n})" for name, one in group.items())
            parts.append(f"{word} than {baseline}: {', '.join(listed)}")
    rest = len(found) - len(better) - len(worse) - len(single)
    if rest:
        parts.append(f"no difference from {baseline} shown in {'the other ' if parts else ''}{rest} of {len(found)}")
    if single:
        parts.append(f"one pair only: {', '.join(single)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
