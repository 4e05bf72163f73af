"""What a study compares, from its rows: held-out losses, scores after fine-tuning, methods of fine-tuning, controls.

Each Comparison is a table of values, one of paired differences and sentences; the report prints them one after the
other and begins with all of their sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_alum.config.words import counted
from megatron_alum.report.pages import Section
from megatron_alum.study.cells import PLAIN
from megatron_alum.study.launch import flags
from megatron_alum.study.plan import ORIGINAL, STANDARD, Downstream, StudyPlan
from megatron_alum.study.rows import Results, Row, first_metric
from megatron_alum.study.tables import (
    Column,
    Found,
    differences,
    differences_table,
    sentences,
    values_table,
)

HIGHER, LOWER = "Above 0 is better.", "Below 0 is better."
FINETUNED_AGAIN = (
    "Each encoder was fine-tuned several times: an interval shows the spread of repeated fine-tuning, not that of "
    "repeated pre-training."
)
PLAIN_TITLE = "standard fine-tuning"


@dataclass(frozen=True)
class Comparison:
    """Lines of a table, compared with a baseline or each with its control."""

    name: str
    """in headings"""
    kind: str
    """what is counted together: held-out loss or fine-tuning"""
    found: Found
    """differences"""
    baseline: str
    """in sentences"""
    sections: tuple[Section, ...]
    """values and differences"""

    @property
    def said(self) -> list[tuple[str, str]]:
        """(measures, what they show)."""
        return sentences(self.found, self.baseline)

    @property
    def intervals(self) -> int:
        """How many differences have one."""
        return sum(one.n > 1 for _, found in self.found for one in found.values())

    @property
    def stars(self) -> int:
        """How many intervals exclude 0."""
        return sum(one.is_one for _, found in self.found for one in found.values())


def titles(plan: StudyPlan) -> dict[str, str]:
    """{arm: its title, with the name by which sentences call it}."""
    return {arm.name: f"{arm.title} ({arm.name})" if arm.title else arm.name for arm in plan.arms}


def all_comparisons(plan: StudyPlan, results: Results) -> Iterator[Comparison]:
    """In the report's order."""
    yield from held_out(plan, results)
    yield from after_pretraining(plan, results)
    yield from with_controls(plan, results)
    yield from methods_from_original(plan, results)
    yield from methods_from_best(plan, results)


def _compared(
    name: str,
    kind: str,
    rows: Sequence[Row],
    columns: Sequence[Column],
    lines: dict[str, str],
    *,
    line: str,
    baseline: tuple[str, str],
    notes: tuple[str, str],
) -> Comparison:
    """`lines` {name: title}, by the field `line` of the rows, compared with `baseline`, its name in the rows and in
    sentences; `notes` stand before the values and before the differences.
    """
    pairs = [(one, one, baseline[0]) for one in lines if one != baseline[0]]
    found = differences(rows, columns, line, pairs)
    sections = (
        Section(name, (notes[0],), values_table(rows, columns, lines, line)),
        _differences_section(f"{name}: differences from {baseline[1]}", notes[1], found, lines, line, baseline[1]),
    )
    return Comparison(name, kind, found, baseline[1], sections)


def _differences_section(
    title: str, note: str, found: Found, lines: dict[str, str], first: str, baseline: str
) -> Section:
    """The differences of `lines` {name: title}, whose heading is `first`, and what they show."""
    said = tuple(f"{measures}: {text}" for measures, text in sentences(found, baseline))
    return Section(title, (note,), differences_table(found, lines, first), after=said)


def probe_columns(plan: StudyPlan) -> list[Column]:
    """Held-out losses."""
    losses: dict[str, Any] = {"lower_is_better": True, "digits": 4, "unit": " nats"}
    columns = [Column("clean", {"measure": "loss-clean"}, **losses)]
    for measure, word in (("loss-noise", "noise"), ("loss-pgd", "PGD")):
        for radius in plan.probes.radii:
            columns.append(Column(f"{word} {radius:g}", {"measure": measure, "radius": radius}, **losses))
    return [*columns, Column("other text", {"measure": "loss-other-text"}, **losses)]


def _probe_rows(results: Results) -> list[Row]:
    return [row for row in results.rows if row["cell"].startswith("probe/")]


def held_out(plan: StudyPlan, results: Results) -> Iterator[Comparison]:
    """Held-out losses of the arms at the end."""
    rows = _probe_rows(results)
    note = (
        "Masked-word loss in nats on held-out documents, without dropout: clean, with uniform noise of a radius on the "
        f"word embeddings, under PGD of {plan.probes.steps} steps in the same L-infinity ball; and clean on text of "
        "another kind. Samples and masks are the same for all arms of a seed and others for another seed, so the "
        "deviation is mostly theirs: compare the differences. A uniform guess over a vocabulary of V words costs ln V "
        "(10.3 for 30,522). Near and above it a lower loss means less confidence in wrong words, not more right ones."
    )
    if rows:
        columns, baseline = probe_columns(plan), (STANDARD, STANDARD)
        notes = note, LOWER
        yield _compared(
            "Held-out loss", "held-out loss", rows, columns, titles(plan), line="arm", baseline=baseline, notes=notes
        )


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


def measured_on(task: Downstream, rows: list[Row]) -> str:
    """How many examples the columns have, and what is meant by them."""
    examples = next((row["examples"] for row in rows if "examples" in row), None)
    is_accuracy = rows[0]["measure"] == "accuracy"
    error = f" (standard error up to {50 / examples**0.5:.1f} points)" if examples and is_accuracy else ""
    said = [f"Scores are of the {examples} development examples{error}." if examples else ""]
    if task.radii:
        said.append(
            f"PGD r: accuracy on the first {task.attacked} under {task.attack_steps} steps of PGD in an L-infinity "
            f"ball of radius r around the word embeddings (standard error up to {50 / task.attacked**0.5:.1f} points)."
        )
    if task.edits:
        said.append("n edits: right on the same examples unchanged and in four copies with n random edits of letters.")
    if task.radii or task.edits:
        said.append(
            "An example that is wrong without an attack counts as wrong, and a classifier that always gives the same "
            "answer withstands every attack: read the accuracy first."
        )
    return " ".join(one for one in said if one)


def _plain_rows(results: Results, task: Downstream) -> list[Row]:
    """Of standard fine-tuning from the arms."""
    rows = results.of(task=task.task, method=PLAIN, iteration=0)
    return [row for row in rows if row["arm"] != ORIGINAL]


def after_pretraining(plan: StudyPlan, results: Results) -> Iterator[Comparison]:
    """Standard fine-tuning from every arm."""
    for task in plan.downstream:
        rows = _plain_rows(results, task)
        if rows:
            before = results.of(task=task.task, method=PLAIN, arm=ORIGINAL)
            note = (
                f"Standard fine-tuning from every arm ({flags(task.options)}); fine-tuning seeds "
                f"{', '.join(map(str, task.seeds))} for each seed of pre-training. {measured_on(task, rows)}"
            )
            yield _compared(
                f"{task.task} after pre-training",
                "fine-tuning",
                [*rows, *before],
                task_columns(task, first_metric(rows)),
                {**titles(plan), ORIGINAL: "the encoder before all of this (original)"},
                line="arm",
                baseline=(STANDARD, STANDARD),
                notes=(note, f"{HIGHER} {FINETUNED_AGAIN}"),
            )


def with_controls(plan: StudyPlan, results: Results) -> Iterator[Comparison]:
    """Arms less what they must beat to owe anything to the ascent, or to the time it takes."""
    pairs = [(f"{arm} - {control}", arm, control) for arm, control in plan.contrasts]
    tables = [("Held-out loss against the controls", "held-out loss", LOWER, _probe_rows(results), probe_columns(plan))]
    for task in plan.downstream:
        rows = _plain_rows(results, task)
        columns = task_columns(task, first_metric(rows)) if rows else []
        note = f"{HIGHER} {FINETUNED_AGAIN}"
        tables.append((f"{task.task} against the controls", "fine-tuning", note, rows, columns))
    for name, kind, note, rows, columns in tables:
        found = differences(rows, columns, "arm", pairs)
        if any(one for _, one in found):
            names = {name: name for name, *_ in pairs}
            section = _differences_section(name, note, found, names, "arm - control", "the control")
            yield Comparison(name, kind, found, "the control", (section,))


def methods_from_original(plan: StudyPlan, results: Results) -> Iterator[Comparison]:
    """Methods of fine-tuning from the encoder that the study starts from."""
    for task in plan.downstream:
        rows = results.of(task=task.task, arm=ORIGINAL)
        if rows:
            note = f"Fine-tuning of the original encoder with seeds {', '.join(map(str, task.original_seeds))}."
            yield _methods(f"{task.task} by method of fine-tuning", note, rows, task, dict(task.original_methods))


def methods_from_best(plan: StudyPlan, results: Results) -> Iterator[Comparison]:
    """Adversarial fine-tuning from the two arms that were best (the paper's section 4.5)."""
    chosen = results.of(measure="best-arms")
    for task in plan.downstream if chosen else ():
        for arm in chosen[0]["value"]:
            rows = results.of(task=task.task, arm=arm, iteration=0)
            if any(row["method"] != PLAIN for row in rows):
                note = (
                    "From the two arms with the best mean score after the first seed, however small their lead: "
                    f"{' and '.join(chosen[0]['value'])}. That seed's standard fine-tunings are those that chose them."
                )
                name = f"{task.task} by method of fine-tuning, from {titles(plan)[arm]}"
                yield _methods(name, note, rows, task, dict(task.methods))


def _methods(name: str, note: str, rows: list[Row], task: Downstream, methods: dict[str, Any]) -> Comparison:
    lines = {PLAIN: "standard"} | {method: f"{method} ({flags(options)})" for method, options in methods.items()}
    encoders = len({row["seed"] for row in rows})
    return _compared(
        name,
        "fine-tuning",
        rows,
        task_columns(task, first_metric(rows)),
        lines,
        line="method",
        baseline=(PLAIN, PLAIN_TITLE),
        notes=(f"{note} {measured_on(task, rows)}", f"{HIGHER} The pairs are of {counted(encoders, 'encoder')}."),
    )
