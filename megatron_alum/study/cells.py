"""The parts of a plan, in the order in which they run: whole comparisons are complete early.

For each seed: the common start; for each arm its training, its probes and its fine-tunings; at the end adversarial
fine-tuning from the two arms that were best. What is measured on the encoder that the study starts from comes after the
first seed. The pilot follows the first arm, which it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_alum.study.plan import ORIGINAL, Downstream, StudyPlan
from megatron_alum.study.rows import Results

Kind = Literal["start", "pilot", "train", "probe", "finetune", "curve", "best"]
PLAIN = "none"
"""method of standard fine-tuning"""


@dataclass(frozen=True)
class Cell:
    """One part, done or not done as a whole."""

    kind: Kind
    """what it does"""
    seed: int
    """of pre-training; 0 for the encoder that the study starts from"""
    arm: str = ""
    """arm that it measures or trains"""
    task: str = ""
    """of fine-tuning"""
    method: str = PLAIN
    """of fine-tuning"""
    finetune_seed: int = 0
    """of fine-tuning"""
    iteration: int = 0
    """of the checkpoint that is fine-tuned; 0 is the arm's last"""

    @property
    def name(self) -> str:
        """Its key in the results."""
        parts = [self.kind, f"seed{self.seed}", self.arm, self.task]
        if self.task:
            parts += [self.method, f"ft{self.finetune_seed}"]
        if self.iteration:
            parts.append(f"iter{self.iteration}")
        return "/".join(part for part in parts if part)


BEST = "best-arms"
"""measure of the row that names the arms of adversarial fine-tuning"""


def all_cells(plan: StudyPlan, results: Results) -> Iterator[Cell]:
    """All cells that are known so far; more follow when the best arms are chosen."""
    for cell in cells_of(plan):
        yield cell
        if cell.kind == "best" and results.has(cell.name):
            (row,) = results.of(cell=cell.name, measure=BEST)
            yield from best_cells(plan, cell.seed, tuple(row["value"]))


def cells_of(plan: StudyPlan) -> Iterator[Cell]:
    """All cells in order, except those of the two best arms, which are known only later (`best_cells`)."""
    first_drawn = next((arm.name for arm in plan.arms if arm.curve), None)
    for number, seed in enumerate(plan.seeds):
        yield Cell("start", seed)
        for place, arm in enumerate(plan.arms):
            yield Cell("train", seed, arm.name)
            yield Cell("probe", seed, arm.name)
            for task in plan.downstream:
                for finetune_seed in task.seeds:
                    yield Cell("finetune", seed, arm.name, task.task, PLAIN, finetune_seed)
            if arm.curve:
                yield from _curve_cells(plan, seed, arm.name, from_start=arm.name == first_drawn)
            if place == 0 and number == 0 and plan.pilot is not None:
                yield Cell("pilot", seed)
        if any(task.methods for task in plan.downstream):
            yield Cell("best", seed)
        if number == 0:
            yield from _original_cells(plan)


def _curve_cells(plan: StudyPlan, seed: int, arm: str, *, from_start: bool) -> Iterator[Cell]:
    """Fine-tunings of the checkpoints before the last one on the first task; the common start is that of all arms."""
    task = plan.downstream[0] if plan.downstream else None
    for point in range(0 if from_start else 1, plan.curve_points if task else 0):
        iteration = plan.start_iters + point * plan.point_iters
        for finetune_seed in task.seeds if task else ():
            assert task is not None
            yield Cell("curve", seed, arm, task.task, PLAIN, finetune_seed, iteration)


def _original_cells(plan: StudyPlan) -> Iterator[Cell]:
    """Every method from the original encoder; seeds outermost, so that each finished one is a comparison."""
    for task in plan.downstream:
        for finetune_seed in task.original_seeds:
            for method in (PLAIN, *task.original_methods):
                yield Cell("finetune", 0, ORIGINAL, task.task, method, finetune_seed)


def best_cells(plan: StudyPlan, seed: int, arms: tuple[str, ...]) -> Iterator[Cell]:
    """Adversarial fine-tuning from the arms that `best` chose."""
    for arm in arms:
        for task in plan.downstream:
            for method in task.methods:
                for finetune_seed in task.seeds:
                    yield Cell("finetune", seed, arm, task.task, method, finetune_seed)


def task_of(plan: StudyPlan, cell: Cell) -> Downstream:
    """The task of a fine-tuning."""
    return next(task for task in plan.downstream if task.task == cell.task)
