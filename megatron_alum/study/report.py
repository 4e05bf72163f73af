"""The report of a study, from its rows only: tables, figures, what they show, and where they were measured."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_alum.config.words import counted, duration
from megatron_alum.finetune.runs.summary import mean_and_deviation
from megatron_alum.report.figures import colors, svg_figure
from megatron_alum.report.pages import Figure, Page, Section, Table, write_page
from megatron_alum.study.cells import PLAIN
from megatron_alum.study.launch import flags
from megatron_alum.study.pilot import chosen_by_pilot
from megatron_alum.study.plan import ORIGINAL, STANDARD, Downstream, StudyPlan, resolved
from megatron_alum.study.rows import SECONDS, Results, Row
from megatron_alum.study.statistics import LEVEL
from megatron_alum.study.tables import Column, compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTRODUCTION = (
    "Standard training was run once per seed to a common start; every arm continues from that checkpoint with the same "
    "samples, masks and random states. A table gives mean +- deviation (number of runs); below it are the paired "
    "differences from the baseline at equal seeds, with a 95 % interval, the wider one of bootstrap and Student's t. "
    "A star marks an interval without 0. A difference whose interval contains 0 counts as none, and so does one from a "
    "single pair. There is no correction for the number of comparisons: of twenty without a true difference, one gets "
    "a star by chance."
)


DIFFERENCES = ": differences from "
"""between the title of a table of values and the baseline, in the title of its table of differences"""


def write_study(plan: StudyPlan, results: Results, folder: Path) -> list[Path]:
    """Writes SCALE.html, SCALE.md and the figures; returns their paths. Raises: ValueError without rows."""
    if not results.rows:
        raise ValueError(f"{results.path} must hold rows to report, but holds none. Run the study first.")
    return write_page(study_page(plan, results), folder, plan.scale)


def study_page(plan: StudyPlan, results: Results) -> Page:
    """The whole report."""
    comparisons = [
        *held_out_sections(plan, results),
        *downstream_sections(plan, results),
        *original_sections(plan, results),
        *best_sections(plan, results),
    ]
    sections = [
        *summary_sections(comparisons),
        arms_section(plan, results),
        *pilot_sections(plan, results),
        *comparisons,
        *cost_sections(plan, results),
        made_section(plan, results),
    ]
    return Page(f"Adversarial pre-training, compared (scale {plan.scale})", (plan.question, INTRODUCTION), (*sections,))


def summary_sections(comparisons: list[Section]) -> Iterator[Section]:
    """The sentences below the tables of differences, and how many of the stars chance alone would give."""
    tables = [section for section in comparisons if DIFFERENCES in section.title and section.table is not None]
    rows = tuple((section.title.split(DIFFERENCES)[0], said) for section in tables for said in section.after)
    cells = [cell for section in tables if section.table for row in section.table.rows for cell in row[1:]]
    intervals, stars = (sum(mark in cell for cell in cells) for mark in ("[", "*"))
    chance = round((1 - LEVEL) * intervals)
    note = f"{stars} of {intervals} intervals exclude 0; if nothing made a difference, about {chance} of so many would."
    if rows:
        yield Section("What came out", (note,) if intervals else (), Table(("compared", "what the rows show"), rows))


def titles(plan: StudyPlan) -> dict[str, str]:
    """{arm: its title, with the name by which sentences call it}."""
    return {arm.name: f"{arm.title} ({arm.name})" if arm.title else arm.name for arm in plan.arms}


def arms_section(plan: StudyPlan, results: Results) -> Section:
    """What was compared."""
    found = chosen_by_pilot(results)
    options = {
        arm.name: arm.options if plan.pilot and found[0] is None else resolved(arm.options, *found) for arm in plan.arms
    }
    rows = tuple(
        (titles(plan)[arm.name], str(plan.total_iters_of(arm) - plan.start_iters), flags(options[arm.name]))
        for arm in plan.arms
    )
    note = (
        f"{plan.start_iters} standard steps to the common start, then each arm; seeds of pre-training: "
        f"{', '.join(map(str, plan.seeds))}. Shared options: {flags(plan.pretraining)}."
    )
    return Section("What was compared", (note,), Table(("arm", "steps", "its options"), rows))


def pilot_sections(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """How the radius was chosen."""
    trials = results.of(measure="pilot-loss")
    if plan.pilot is None or not trials:
        return
    baseline = next((row["value"] for row in trials if row["radius"] is None), None)
    rows = tuple(
        ("standard", "", f"{row['value']:.4f}", "")
        if row["radius"] is None
        else (
            f"{row['radius']:g}",
            f"{row['alpha']:g}",
            f"{row['value']:.4f}",
            f"{row['value'] - (baseline or 0):+.4f}",
        )
        for row in trials
    )
    said = []
    for row in results.of(measure="pilot-choice"):
        why = "" if row["qualifies"] else ", that with the lowest loss: none was within the tolerance"
        said.append(f"Chosen: radius {row['value']:g}, alpha {row['alpha']:g}{why}.")
    note = (
        f"The largest radius whose clean held-out loss stays within {plan.pilot.tolerance:g} of standard training "
        f"after {plan.pilot_iters} steps from the common start (first seed)."
    )
    headings = ("radius", "alpha", "held-out loss (nats)", "less standard")
    yield Section("Pilot: the radius", (note,), Table(headings, rows), after=tuple(said))


def held_out_sections(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Held-out losses at the end, their differences, and on the way."""
    losses: dict[str, Any] = {"lower_is_better": True, "digits": 4, "unit": " nats"}
    columns = [Column("clean", {"measure": "loss-clean"}, **losses)]
    for measure, word in (("loss-noise", "noise"), ("loss-pgd", "PGD")):
        for radius in plan.probes.radii:
            columns.append(Column(f"{word} {radius:g}", {"measure": measure, "radius": radius}, **losses))
    columns.append(Column("other text", {"measure": "loss-other-text"}, **losses))
    rows = [row for row in results.rows if row["cell"].startswith("probe/")]
    if not rows:
        return
    values, moved, said = compared(
        rows, columns, titles(plan), line=lambda row: str(row["arm"]), baseline=STANDARD, first="arm"
    )
    note = (
        "Masked-word loss in nats on held-out documents, without dropout: clean, with uniform noise of a radius on the "
        f"word embeddings, under PGD of {plan.probes.steps} steps in the same ball; and clean on text of another kind."
    )
    yield Section("Held-out loss", (note,), values)
    yield Section(f"Held-out loss{DIFFERENCES}{STANDARD}", ("Below 0 is better.",), moved, after=said)
    drawn = [row for row in results.of(measure="held-out-loss") if row["cell"].startswith(("train/", "start/"))]
    if any(row["cell"].startswith("train/") for row in drawn):
        svg = svg_figure(f"{plan.scale}-steps", lambda axes: _draw_losses(axes, plan, drawn), height=5.6)
        caption = "Clean held-out loss while an arm trains, mean over the seeds; steps count from the common start."
        yield Section("Held-out loss against steps", figure=Figure(f"{plan.scale}-steps", svg, caption))


def _draw_losses(axes: Axes, plan: StudyPlan, rows: list[Row]) -> None:
    palette = colors(len(plan.arms))
    for number, (arm, color) in enumerate(zip(plan.arms, palette, strict=True)):
        points: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row.get("arm") == arm.name:
                points[row["iteration"] - plan.start_iters].append(row["value"])
        if points:
            style = "-" if number < len(set(palette)) else "--"
            means = [statistics.fmean(points[step]) for step in sorted(points)]
            axes.plot(sorted(points), means, style, marker=".", label=arm.title or arm.name, color=color)
    axes.set_xlabel("steps after the common start")
    axes.set_ylabel("masked-word loss (nats)")


def task_columns(task: Downstream, metric: str) -> list[Column]:
    """Score and accuracies under attack, in percent."""
    percent: dict[str, Any] = {"scale": 100.0, "digits": 1, "unit": " points"}
    columns = [Column(f"{metric} (%)", {"measure": metric}, **percent)]
    columns += [
        Column(f"PGD {radius:g} (%)", {"measure": "accuracy-pgd", "radius": radius}, **percent) for radius in task.radii
    ]
    columns += [
        Column(f"{edits} edits (%)", {"measure": "accuracy-edits", "edits": edits}, **percent) for edits in task.edits
    ]
    return columns


def _first_metric(rows: list[Row]) -> str:
    return str(rows[0]["measure"])


def downstream_sections(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Standard fine-tuning from every arm, and from checkpoints on the way."""
    for task in plan.downstream:
        found = [row for row in results.of(task=task.task, method=PLAIN, iteration=0) if row["arm"] != ORIGINAL]
        if not found:
            continue
        note = (
            f"Standard fine-tuning from every arm ({flags(task.options)}); fine-tuning seeds "
            f"{', '.join(map(str, task.seeds))} for each seed of pre-training."
        )
        yield from _compared_sections(
            f"{task.task} after pre-training", note, found, task, titles(plan), line="arm", baseline=STANDARD
        )
    curve = [row for row in results.rows if row["cell"].startswith("curve/")]
    if curve:
        task = plan.downstream[0]
        metric = _first_metric(curve)
        last = [row for row in results.of(task=task.task, method=PLAIN, iteration=0) if row["arm"] != ORIGINAL]
        svg = svg_figure(f"{plan.scale}-curve", lambda axes: _draw_scores(axes, plan, [*curve, *last], metric))
        caption = (
            f"{task.task} after standard fine-tuning from checkpoints on the way, mean and deviation over the seeds "
            "(the paper's Figure 1 at this scale)."
        )
        yield Section("Score against steps", figure=Figure(f"{plan.scale}-curve", svg, caption))


def _draw_scores(axes: Axes, plan: StudyPlan, rows: list[Row], metric: str) -> None:
    drawn = [arm for arm in plan.arms if arm.curve]
    for arm, color in zip(drawn, colors(len(drawn)), strict=True):
        points: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row["measure"] == metric and (row["arm"] == arm.name or row["iteration"] == plan.start_iters):
                points[(row["iteration"] or plan.total_iters_of(arm)) - plan.start_iters].append(100 * row["value"])
        spread = [mean_and_deviation(points[step]) for step in sorted(points)]
        means, deviations = zip(*((mean, deviation or 0.0) for mean, deviation in spread), strict=True)
        axes.errorbar(
            sorted(points), means, deviations, marker="o", capsize=3, label=arm.title or arm.name, color=color
        )
    axes.set_xlabel("steps after the common start")
    axes.set_ylabel(f"{metric} (%)")


def _compared_sections(
    title: str, note: str, rows: list[Row], task: Downstream, lines: dict[str, str], *, line: str, baseline: str
) -> Iterator[Section]:
    columns = task_columns(task, _first_metric(rows))
    values, moved, said = compared(rows, columns, lines, line=lambda row: str(row[line]), baseline=baseline, first=line)
    attacked = f" ({task.attacked} of them under attack)" if task.radii or task.edits else ""
    scope = f"All pairs share the test examples{attacked}."
    if baseline == STANDARD:
        seeds = counted(len({row["seed"] for row in rows}), "encoder")
        scope += (
            f" They come from {seeds} of every arm, one for each seed of pre-training, each fine-tuned several times: "
            "the intervals are about fine-tuning again, and say little about repeating the pre-training."
        )
    yield Section(title, (note,), values)
    yield Section(f"{title}{DIFFERENCES}{lines[baseline]}", (scope,), moved, after=said)


def original_sections(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Methods of fine-tuning from the encoder that the study starts from."""
    for task in plan.downstream:
        found = results.of(task=task.task, arm=ORIGINAL)
        if found:
            lines = {PLAIN: "standard"} | {
                name: f"{name} ({flags(options)})" for name, options in task.original_methods.items()
            }
            note = (
                "Fine-tuning of the original encoder, standard and with every method; seeds "
                f"{', '.join(map(str, task.original_seeds))}."
            )
            title = f"{task.task} by method of fine-tuning"
            yield from _compared_sections(title, note, found, task, lines, line="method", baseline=PLAIN)


def best_sections(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Adversarial fine-tuning from the two arms that were best (the paper's section 4.5)."""
    chosen = results.of(measure="best-arms")
    for task in plan.downstream if chosen else ():
        for arm in chosen[0]["value"]:
            found = results.of(task=task.task, arm=arm, iteration=0)
            if any(row["method"] != PLAIN for row in found):
                lines = {PLAIN: "standard"} | {name: f"{name} ({flags(task.methods[name])})" for name in task.methods}
                note = f"The arms with the best mean score after the first seed: {', '.join(chosen[0]['value'])}."
                title = f"{task.task}: adversarial fine-tuning from {titles(plan)[arm]}"
                yield from _compared_sections(title, note, found, task, lines, line="method", baseline=PLAIN)


def cost_sections(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Speed, path and the metrics of the perturbation."""
    rows = [row for row in results.rows if row["cell"].startswith("train/")]
    if not rows:
        return
    measures = (
        ("step (s)", "step-seconds", ".2f"),
        ("tokens/s", "tokens-per-second", ".0f"),
        ("fill", "fill", ".2f"),
        ("K", "ascent-steps", "g"),
        ("KL in training", "training-alum-kl", ".2e"),
        ("effective perturbation", "training-effective-perturbation", ".3f"),
        ("ascent_ratio", "training-ascent-ratio", ".1e"),
        ("kl_gain", "training-kl-gain", ".1e"),
    )
    lines = []
    for arm in plan.arms:
        cells = [_mean_of(results.of(arm=arm.name, measure=measure), digits) for _, measure, digits in measures]
        if any(cells):
            lines.append((titles(plan)[arm.name], *cells))
    paths = sorted({str(row["path"]) for row in rows if row["measure"] == "fused" and row["value"]})
    fused = all(row["value"] for row in rows if row["measure"] == "fused")
    path = f"the fused kernels ({', '.join(paths)})" if fused else "the torch reference, in some arms at least"
    note = (
        f"Rows of the vocabulary and perturbations ran on {path}; batches are rows of real tokens without padding, and "
        "the column fill is the share to which padded rows would be filled. Step and speed are medians, on a machine "
        "that may have had other work."
    )
    yield Section("Cost, path and perturbation", (note,), Table(("arm", *(m[0] for m in measures)), tuple(lines)))


def _mean_of(rows: list[Row], digits: str) -> str:
    return format(statistics.fmean(row["value"] for row in rows), digits) if rows else ""


def made_section(plan: StudyPlan, results: Results) -> Section:
    """Commit, machine, hours and commands."""
    rows = results.of(measure=SECONDS)
    places: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for row in rows:
        places[(row["commit"], row["machine"], row["threads"])].append(row["value"])
    lines = tuple(
        (commit, machine, str(threads), str(len(seconds)), f"{sum(seconds) / 3600:.2f}")
        for (commit, machine, threads), seconds in places.items()
    )
    note = (
        f"{len({row['cell'] for row in rows})} cells in {duration(sum(row['value'] for row in rows))} on the "
        "clock. A cell that was interrupted counts from its last start."
    )
    commands = (
        f"make study SCALE={plan.scale}",
        f"python examples/study/run.py examples/study/{plan.scale}.yaml --results examples/study/results --report",
    )
    headings = ("commit", "machine", "threads", "cells", "hours")
    return Section("How it was made", (note,), Table(headings, lines), commands=commands)
