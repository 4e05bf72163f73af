"""Figures 1 and 2 as SVG that stands in a page as well as alone: text stays text, lines follow light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from megatron_alum.config.extras import require
from megatron_alum.report.results import Results, method_means, pretraining_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Drawn wherever the page's own text colour belongs: no other line has it, so it can be replaced in the SVG."""
COLORS = ("#d9730d", "#2f80c9", "#2f9e6e", "#b0559c", "#8a8f98", "#c9a227")
"""Of systems and methods; each is told from a white and from a black page."""
STYLE = (
    "<style>svg { color: #1c2733; } @media screen and (prefers-color-scheme: dark) { svg { color: #e6ebf0; } }</style>"
)


def draw_figures(results: Results) -> dict[int, str]:
    """{number of the paper's figure: SVG} of those that `results` has values for."""
    curves = pretraining_curves(results, ("mnli", "dev", "accuracy"))
    bars = method_means(results)
    drawn = {}
    if curves:
        drawn[1] = svg_figure("figure1", lambda axes: _draw_curves(axes, curves))
    if bars:
        drawn[2] = svg_figure("figure2", lambda axes: _draw_bars(axes, bars))
    return drawn


def _draw_curves(axes: Axes, curves: Mapping[str, list[tuple[int, float]]]) -> None:
    for (system, points), color in zip(curves.items(), colors(len(curves)), strict=True):
        axes.plot(*zip(*points, strict=True), marker="o", label=system, color=color)
    axes.set_xlabel("pre-training iterations")
    axes.set_ylabel("MNLI matched accuracy (%)")


def _draw_bars(axes: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    tasks = sorted({task for values in bars.values() for task in values})
    width = 0.8 / len(bars)
    for index, ((method, values), color) in enumerate(zip(bars.items(), colors(len(bars)), strict=True)):
        positions = [tasks.index(task) + index * width for task in values]
        drawn = axes.bar(positions, list(values.values()), width * 0.94, label=method, color=color)
        axes.bar_label(drawn, fmt="%.1f", padding=1, fontsize="small")
    axes.set_xticks([position + 0.4 - width / 2 for position in range(len(tasks))], tasks)
    axes.set_ylabel("dev, first metric (%)")


def colors(count: int) -> list[str]:
    """As many of COLORS, from the first one again where they run out."""
    return [COLORS[index % len(COLORS)] for index in range(count)]


def svg_figure(name: str, draw: Callable[[Axes], None], *, height: float = 3.8) -> str:
    """The SVG element of one figure, `height` inches high; the same drawing gives the same text."""
    require("matplotlib")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", frameon=False, ncols=2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Two figures share a page: what one refers to by name must not be the other's.
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{name}-", svg)
    return svg.replace(">", f">\n{STYLE}", 1)
