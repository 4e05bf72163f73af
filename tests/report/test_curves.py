"""Curves: the rows, the phases, the running mean on hand-made numbers, and what the PNG shows read from its pixels."""

import json
import math

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from megatron_alum.report.curves import PHASE_COLORS, column, phase_spans, plot_curves, read_metrics, running_mean

HALF = 10


def rows(nsp=0.7, alum_phase="alum"):
    def row(i):
        adversarial = alum_phase == "alum" and i > HALF
        return {
            "iteration": i,
            "phase": "alum" if adversarial else "standard",
            "lm_loss": 10.0 - i / 10,
            "nsp_loss": nsp,
            "alum_kl": 1e-9 * i if adversarial else None,
            "mask_rate": 0.05 * (1 + i // 5),
            "lr": 1e-3,
        }

    return [row(i) for i in range(1, 2 * HALF + 1)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_reads_back_the_rows_and_keeps_their_order(tmp_path):
    assert read_metrics(write(tmp_path / "m.jsonl", rows())) == rows()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at least one logged iteration"),
        ('{"iteration": 1}\n{"itera', "line 2"),
        ("[1]\n", "line 1"),
        ("{}", "line 1"),
    ],
)
def test_refuses_a_file_that_is_not_a_metrics_file(tmp_path, text, complaint):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        plot_curves(tmp_path / "m.jsonl", tmp_path / "c.png")
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_phase_spans_are_the_runs_of_equal_phase():
    assert phase_spans(rows()) == [("standard", 1, 10), ("alum", 11, 20)]
    assert phase_spans([{"iteration": i, "phase": p} for i, p in ((2, "a"), (4, "b"), (6, "b"), (8, "a"))]) == [
        ("a", 2, 2),
        ("b", 4, 6),
        ("a", 8, 8),
    ]


def test_running_mean_by_hand_skips_nulls():
    values = column([{"x": 1}, {"x": None}, {"x": 3}, {"x": 8}, {}], "x")
    means = running_mean(values, 2)
    assert [means[0], means[2], means[3]] == [1.0, 3.0, 5.5]
    assert math.isnan(means[1]) and math.isnan(means[4])


def shade_columns(image, phase):
    """The pixel columns in which the phase's background colour is frequent."""
    color = np.array(matplotlib.colors.to_rgb(PHASE_COLORS[phase])) * 255
    hits = (np.abs(image[..., :3].astype(float) - color).max(axis=-1) < 2).sum(axis=0)
    return np.flatnonzero(hits > 0.4 * image.shape[0])


def test_the_png_shades_the_phases_left_and_right(tmp_path):
    png = plot_curves(write(tmp_path / "metrics.jsonl", rows()), tmp_path / "out" / "curves.png")
    image = np.asarray(Image.open(png))
    standard, alum = shade_columns(image, "standard"), shade_columns(image, "alum")
    assert standard.size and alum.size and standard.max() < alum.min()
    # Both phases have ten iterations, so the two shades are equally wide (one pixel of rounding each side).
    assert abs(standard.size - alum.size) <= 4
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_without_nsp_and_without_alum_is_drawn_with_empty_panels(tmp_path):
    png = plot_curves(write(tmp_path / "metrics.jsonl", rows(nsp=None, alum_phase="none")), tmp_path / "c.png")
    image = np.asarray(Image.open(png))
    assert shade_columns(image, "standard").size and not shade_columns(image, "alum").size
