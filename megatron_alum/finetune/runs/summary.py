"""Mean, standard deviation and count over the seeds of each point of a grid."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_alum.config.words import counted

Key = tuple[str, str, str, float, int]  # split, metric, method, learning rate, batch size


def over_seeds(rows: Iterable[Mapping[str, Any]]) -> dict[Key, list[float]]:
    """{(split, metric, method, learning rate, batch size): one value per seed}."""
    groups: dict[Key, list[float]] = defaultdict(list)
    for row in rows:
        key = (row["split"], row["metric"], row["method"], row["learning_rate"], row["batch_size"])
        groups[key].append(row["value"])
    return dict(groups)


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_summary(rows: Iterable[Mapping[str, Any]], primary: str) -> str:
    """One line per point, split and metric; the point with the best mean of `primary` on the first split is starred."""
    groups = over_seeds(rows)
    if not groups:
        return "no results"
    first_split = next(iter(groups))[0]
    candidates = {key: statistics.fmean(v) for key, v in groups.items() if key[:2] == (first_split, primary)}
    best = max(candidates, key=lambda key: candidates[key])[2:] if candidates else None
    lines = []
    for key, values in groups.items():
        split, metric, method, rate, size = key
        mean, deviation = mean_and_deviation(values)
        spread = "" if deviation is None else f" +- {deviation:.4f}"
        mark = "*" if key[2:] == best else " "
        result = f"{split} {metric} {mean:.4f}{spread} ({counted(len(values), 'seed')})"
        lines.append(f"{mark} {method:7s} lr {rate:g} batch {size:3d}  {result}")
    return "\n".join(lines)
