"""Accuracy against the radius of an embedding attack, one curve per model, from attack.jsonl rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_alum.config.extras import require


def robustness_curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """{model: [(radius, accuracy)]} in order of the radius."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["attack"] == "pgd":
            curves[row["model"]].append((row["radius"], row["accuracy"]))
    return {model: sorted(points) for model, points in curves.items()}


def plot_robustness(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write the curves as a PNG."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for model, points in robustness_curves(rows).items():
        axes.plot(*zip(*points, strict=True), marker="o", label=model)
    axes.set_xlabel("L-infinity radius around the word embeddings")
    axes.set_ylabel("accuracy under attack")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
