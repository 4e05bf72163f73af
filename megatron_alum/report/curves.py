"""Training curves from a run's metrics.jsonl: one PNG of losses, symmetric KL, mask rate and learning rate.

    plot_curves("run/metrics.jsonl", "run/curves.png")

Five panels share the axis of iterations; each phase (standard, alum) has its own background. A thin line shows every
logged iteration, a thick one the mean over a window of a twentieth of the run. The KL is drawn on a logarithmic axis:
at the paper's constants it is many orders of magnitude below the losses. Nulls in the file (no NSP, standard phase)
leave gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megatron_alum.config.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS: tuple[tuple[str, str, Literal["noisy", "noisy-log", "schedule"]], ...] = (
    ("lm_loss", "MLM loss (nats)", "noisy"),
    ("nsp_loss", "NSP loss (nats)", "noisy"),
    ("alum_kl", "symmetric KL (nats)", "noisy-log"),
    ("mask_rate", "mask rate", "schedule"),
    ("lr", "learning rate", "schedule"),
)
"""(field of metrics.jsonl, axis label, kind) from top to bottom; a schedule has no noise to average away."""
PHASE_COLORS = {"standard": "#dbe9f6", "alum": "#fde5cf"}
LINE_COLOR = "#24425c"
WINDOWS_PER_RUN = 20
"""The thick line averages over this share of the run: enough to smooth batch noise and still resolve a phase."""


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in file order.

    Raises: ValueError for a file without rows or with a line that is not a JSON object; OSError when unreadable.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or "iteration" not in row:
            raise ValueError(
                f"line {number} of {path} must be a JSON object with `iteration`, but is {line[:60]!r} instead."
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} must hold at least one logged iteration, but is empty. Train with --log-interval 1.")
    return rows


def phase_spans(rows: Sequence[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(phase, first iteration, last iteration) of each run of consecutive rows with one phase."""
    spans: list[tuple[str, int, int]] = []
    for row in rows:
        phase, iteration = str(row.get("phase")), int(row["iteration"])
        if spans and spans[-1][0] == phase:
            spans[-1] = (phase, spans[-1][1], iteration)
        else:
            spans.append((phase, iteration, iteration))
    return spans


def column(rows: Sequence[dict[str, Any]], field: str) -> list[float]:
    """One field over the rows as floats; null and absent values are NaN."""
    return [math.nan if row.get(field) is None else float(row[field]) for row in rows]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window - 1` values before it, ignoring NaNs; NaN where the value is NaN."""
    means = []
    for end, value in enumerate(values, start=1):
        recent = [v for v in values[max(0, end - window) : end] if not math.isnan(v)]
        means.append(math.nan if math.isnan(value) else sum(recent) / len(recent))
    return means


def plot_curves(metrics: str | Path, png: str | Path, *, title: str = "") -> Path:
    """Draw the curves of `metrics` (a metrics.jsonl) into `png`, written whole or not at all; returns its path."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    figure = Figure(figsize=(9, 2.1 * len(PANELS)), layout="constrained")
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    for axis, (field, label, kind) in zip(axes, PANELS, strict=True):
        axis.set_ylabel(label)
        _draw_panel(axis, rows, field, kind)
    axes[0].set_title(title or f"{Path(metrics).parent.name or 'run'}: {rows[-1]['iteration']} iterations")
    axes[0].legend(loc="upper right", fontsize="small")
    axes[-1].set_xlabel("iteration")
    target = Path(png)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    FigureCanvasAgg(figure).print_png(str(partial))
    os.replace(partial, target)
    return target


def _draw_panel(axis: Axes, rows: Sequence[dict[str, Any]], field: str, kind: str) -> None:
    iterations = [int(row["iteration"]) for row in rows]
    values = column(rows, field)
    shaded: set[str] = set()
    for phase, first, last in phase_spans(rows):
        name = None if phase in shaded else f"{phase} phase"
        axis.axvspan(first - 0.5, last + 0.5, color=PHASE_COLORS.get(phase, "#eeeeee"), label=name, zorder=0)
        shaded.add(phase)
    if kind == "schedule":
        means = values
    else:
        axis.plot(iterations, values, color=LINE_COLOR, alpha=0.35, linewidth=0.8)
        means = running_mean(values, max(1, len(rows) // WINDOWS_PER_RUN))
    axis.plot(iterations, means, color=LINE_COLOR, linewidth=1.6)
    axis.set_xlim(iterations[0] - 0.5, iterations[-1] + 0.5)
    if kind == "noisy-log" and any(value > 0 for value in values):
        axis.set_yscale("log")
    elif all(math.isnan(value) for value in values):
        axis.text(0.5, 0.5, "not part of this run", transform=axis.transAxes, ha="center", va="center", color="#777777")
        axis.set_yticks([])
