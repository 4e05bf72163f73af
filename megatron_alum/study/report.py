"""The report of a study, from its rows only: tables, figures, what they show, and where they were measured."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_alum.config.words import counted, duration
from megatron_alum.finetune.runs.summary import mean_and_deviation
from megatron_alum.report.figures import colors, svg_figure
from megatron_alum.report.pages import Figure, Page, Section, Table, write_page
from megatron_alum.study.cells import PLAIN, all_cells
from megatron_alum.study.comparisons import Comparison, all_comparisons, titles
from megatron_alum.study.estimate import passes_of
from megatron_alum.study.launch import flags
from megatron_alum.study.pilot import chosen_by_pilot
from megatron_alum.study.plan import DEFAULT_ALPHA, ORIGINAL, STANDARD, StudyPlan, resolved
from megatron_alum.study.rows import SECONDS, Results, Row, first_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTRODUCTION = (
    "Standard training was run once per seed to a common start; every arm continues from there with the same samples, "
    "masks and random states. A table gives mean +- deviation (number of runs); below it are the paired differences "
    "from the baseline at equal seeds, with a 95 % interval, the wider one of bootstrap and Student's t, which with "
    "few pairs is always Student's. A star marks an interval without 0. Where the interval contains 0, and for a "
    "single pair, no difference is shown; one smaller than the interval may still exist. There is no correction for "
    "the number of comparisons."
)
CHANCE = (
    "Where nothing makes a difference, one interval of twenty excludes 0 on average, and more of those of fine-tuning, "
    "whose pairs share encoders."
)


def write_study(plan: StudyPlan, results: Results, folder: Path) -> list[Path]:
    """Writes SCALE.html, SCALE.md and the figures; returns their paths. Raises: ValueError without rows."""
    if not results.rows:
        raise ValueError(f"{results.path} must hold rows to report, but holds none. Run the study first.")
    return write_page(study_page(plan, results), folder, plan.scale)


def study_page(plan: StudyPlan, results: Results) -> Page:
    """The whole report."""
    comparisons = list(all_comparisons(plan, results))
    sections = [
        *summary_sections(comparisons),
        arms_section(plan, results),
        *pilot_sections(plan, results),
    ]
    for comparison in comparisons:
        sections += comparison.sections
        if comparison.kind == "held-out loss" and comparison.baseline == STANDARD:
            sections += loss_figure(plan, results)
    sections += [*score_figure(plan, results), *cost_sections(plan, results), made_section(plan, results)]
    return Page(f"Adversarial pre-training, compared (scale {plan.scale})", (plan.question, INTRODUCTION), (*sections,))


def summary_sections(comparisons: list[Comparison]) -> Iterator[Section]:
    """The sentences below all tables of differences, and how many stars there are."""
    rows = tuple((one.name, measures, text) for one in comparisons for measures, text in one.said)
    counts = []
    for kind in dict.fromkeys(one.kind for one in comparisons):
        those = [one for one in comparisons if one.kind == kind]
        stars, intervals = sum(one.stars for one in those), sum(one.intervals for one in those)
        if intervals:
            counts.append(f"{kind[0].upper()}{kind[1:]}: {stars} of {intervals} intervals exclude 0.")
    if rows:
        note = (" ".join((*counts, CHANCE)),) if counts else ()
        yield Section("What came out", note, Table(("compared", "measure", "what the rows show"), rows))


def arms_section(plan: StudyPlan, results: Results) -> Section:
    """What was compared."""
    found = chosen_by_pilot(results)
    alpha = plan.pretraining.get("alum-alpha", DEFAULT_ALPHA)
    rows = []
    for arm in plan.arms:
        options = arm.options if plan.pilot and found[0] is None else resolved(arm.options, *found)
        steps = plan.total_iters_of(arm) - plan.start_iters
        rows.append(
            (titles(plan)[arm.name], str(steps), f"{passes_of(arm):g}", flags({"alum-alpha": alpha, **options}))
        )
    note = (
        f"{plan.start_iters} standard steps to the common start, then each arm; seeds of pre-training: "
        f"{', '.join(map(str, plan.seeds))}. Shared options: {flags(plan.pretraining)}. What a step costs is counted "
        "in forward passes."
    )
    if any(arm.equal_cost for arm in plan.arms):
        note += (
            " The arm of equal cost takes as many steps as cost what the steps of an arm with one ascent cost; its "
            "peak learning rate is lowered such that it continues at the others' rate."
        )
    return Section(
        "What was compared",
        (note,),
        Table(("arm", "steps", "passes a step", "its options"), tuple(rows)),
        after=tuple(different_starts(results)),
    )


def different_starts(results: Results) -> Iterator[str]:
    """A sentence for each seed whose arms did not start from the same network: the first loss is that of the start."""
    seeds: dict[int, dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in (row for row in results.of(measure="first-lm-loss") if "arm" in row):
        seeds[row["seed"]][row["value"]].append(row["arm"])
    for seed, groups in seeds.items():
        if len(groups) > 1:
            listed = "; ".join(f"{loss:.4f} nats ({', '.join(arms)})" for loss, arms in groups.items())
            yield (
                f"The arms of seed {seed} do not all start from the same network, since the start was trained again on "
                f"another machine, where sums round in another way. Their first training losses: {listed}."
            )


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
        chosen = f"radius {row['value']:g}, alpha {row['alpha']:g}"
        if row["qualifies"]:
            said.append(f"Chosen: {chosen}.")
        else:
            said.append(f"No trial was within the tolerance. The one with the lowest loss was taken: {chosen}.")
    note = (
        f"Looked for: the largest radius whose clean held-out loss stays within {plan.pilot.tolerance:g} of standard "
        f"training after {plan.pilot_iters} steps from the common start (first seed; the held-out batches are those of "
        "the tables below)."
    )
    headings = ("radius", "alpha", "held-out loss (nats)", "minus standard")
    yield Section("Pilot: the radius", (note,), Table(headings, rows), after=tuple(said))


def loss_figure(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Held-out losses on the way."""
    rows = [row for row in results.of(measure="held-out-loss") if row["cell"].startswith(("train/", "start/"))]
    if any(row["cell"].startswith("train/") for row in rows):
        svg = svg_figure(f"{plan.scale}-steps", lambda axes: _draw_losses(axes, plan, rows), height=5.6)
        caption = (
            "Clean held-out loss while an arm trains, mean over the seeds. Steps count from the common start; they "
            "cost more in some arms than in others."
        )
        yield Section("Held-out loss against steps", figure=Figure(f"{plan.scale}-steps", svg, caption))


def _draw_losses(axes: Axes, plan: StudyPlan, rows: list[Row]) -> None:
    palette = colors(len(plan.arms))
    for number, (arm, color) in enumerate(zip(plan.arms, palette, strict=True)):
        points: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            common = row["cell"].startswith("start/") and row["iteration"] == plan.start_iters
            if common or row.get("arm") == arm.name:
                points[row["iteration"] - plan.start_iters].append(row["value"])
        if len(points) > 1:
            style = "-" if number < len(set(palette)) else "--"
            means = [statistics.fmean(points[step]) for step in sorted(points)]
            axes.plot(sorted(points), means, style, marker=".", label=arm.title or arm.name, color=color)
    axes.set_xlabel("steps after the common start")
    axes.set_ylabel("masked-word loss (nats)")


def score_figure(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Standard fine-tuning from checkpoints on the way."""
    curve = [row for row in results.rows if row["cell"].startswith("curve/")]
    if curve:
        task = plan.downstream[0]
        metric = first_metric(curve)
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


def cost_sections(plan: StudyPlan, results: Results) -> Iterator[Section]:
    """Speed, path and the metrics of the perturbation."""
    rows = [row for row in results.rows if row["cell"].startswith("train/")]
    if not rows:
        return
    timed, place = most_common_place(rows)
    measures = (
        ("step (s)", "step-seconds", ".2f", timed),
        ("tokens/s", "tokens-per-second", ".0f", timed),
        ("fill", "fill", ".2f", rows),
        ("K", "ascent-steps", "g", rows),
        ("KL in training", "training-alum-kl", ".2e", rows),
        ("effective perturbation", "training-effective-perturbation", ".3f", rows),
        ("ascent_ratio", "training-ascent-ratio", ".1e", rows),
        ("kl_gain", "training-kl-gain", ".1e", rows),
    )
    lines = []
    for arm in plan.arms:
        cells = [_mean_of(found, arm.name, measure, digits) for _, measure, digits, found in measures]
        if any(cells):
            lines.append((titles(plan)[arm.name], *cells))
    fused = all(row["value"] for row in rows if row["measure"] == "fused")
    path = "the fused kernels" if fused else "the torch reference, in some arms at least"
    note = (
        f"Vocabulary losses and perturbations ran on {path}. Batches hold real tokens only; fill is the share of "
        f"padded rows that would be real tokens. Step and tokens/s are medians of the runs with {place}, on a machine "
        "that may have had other work. K is the number of ascent steps; the last four columns are explained in "
        "docs/choosing.md. Unless dropout is shared, KL includes that of two dropout masks; it falls as alpha grows."
    )
    yield Section("Cost, path and perturbation", (note,), Table(("arm", *(m[0] for m in measures)), tuple(lines)))


def most_common_place(rows: list[Row]) -> tuple[list[Row], str]:
    """The rows of the cells that ran on the instruction set and number of threads that most cells have, and these."""
    places: dict[str, str] = {}
    for row in rows:
        if row["measure"] == "fused":
            places[row["cell"]] = str(row["path"]) if row["value"] else "torch"
    for row in rows:
        if row["measure"] == SECONDS:
            places[row["cell"]] = f"{places.get(row['cell'], 'torch')} and {counted(row['threads'], 'thread')}"
    common = statistics.mode(places.values())
    return [row for row in rows if places.get(row["cell"]) == common], common


def _mean_of(rows: list[Row], arm: str, measure: str, digits: str) -> str:
    values = [row["value"] for row in rows if row.get("arm") == arm and row["measure"] == measure]
    return format(statistics.fmean(values), digits) if values else ""


def made_section(plan: StudyPlan, results: Results) -> Section:
    """Commit, machine, hours and commands."""
    rows = results.of(measure=SECONDS)
    whole = {row["cell"].rpartition("/")[0] for row in rows}  # a pilot's seconds are those of its trials
    places: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["cell"] not in whole:
            places[(row["commit"], row["machine"], row["threads"])].append(row["value"])
    lines = tuple(
        (commit, machine, str(threads), str(len(seconds)), f"{sum(seconds) / 3600:.2f}")
        for (commit, machine, threads), seconds in places.items()
    )
    total = sum(sum(seconds) for seconds in places.values())
    note = (
        f"The times of {sum(map(len, places.values()))} cells add up to {duration(total)}. They include what a cell "
        "had to train again, and pauses; an interrupted cell counts from its last start. Cells may run side by side."
    )
    missing = sum(not results.has(cell.name) for cell in all_cells(plan, results))
    if missing:
        note += f" Not done yet: {counted(missing, 'cell')}."
    commands = (
        f"make study SCALE={plan.scale}",
        f"python examples/study/run.py examples/study/{plan.scale}.yaml --results examples/study/results --report",
    )
    headings = ("commit", "machine", "threads", "cells", "hours")
    return Section("How it was made", (note,), Table(headings, lines), commands=commands)
