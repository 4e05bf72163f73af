"""The pilot: the largest radius that leaves the clean held-out loss where standard training has it.

Each trial is the arm that names the pilot, from the common start, for a part of its steps and on the arms' own schedule
of rates. Trials go from the largest radius down and end with the first one that is good enough; where none is, the next
alpha is tried. Every trial is a row, kept as soon as it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_alum.study.plan import STANDARD, Arm, StudyPlan, resolved
from megatron_alum.study.pretraining import arm_options, read_lines, run_to_end
from megatron_alum.study.rows import SECONDS, Results, Row
from megatron_alum.training.metrics import VALIDATION_FILE

Keep = Callable[[str, list[Row]], None]


def trials(plan: StudyPlan) -> Iterator[tuple[float, float]]:
    """(alpha, radius) in the order in which they are tried."""
    assert plan.pilot is not None
    for alpha in plan.pilot.alphas:
        for radius in sorted(plan.pilot.radii, reverse=True):
            yield alpha, radius


def run_pilot(plan: StudyPlan, work: Path, seed: int, results: Results, keep: Keep) -> Row:
    """The row that says which radius and alpha were chosen; `keep` takes those of each trial that is not done yet."""
    assert plan.pilot is not None
    limit = _loss(plan, work, seed, plan.arm(STANDARD), None, results, keep) + plan.pilot.tolerance
    losses: dict[tuple[float, float], float] = {}
    for trial in trials(plan):
        losses[trial] = _loss(plan, work, seed, plan.arm(plan.pilot.arm), trial, results, keep)
        if losses[trial] <= limit:
            break
    chosen, qualifies = choose(losses, limit)
    alpha, radius = chosen
    return {"measure": "pilot-choice", "value": radius, "alpha": alpha, "qualifies": qualifies}


def choose(losses: dict[tuple[float, float], float], limit: float) -> tuple[tuple[float, float], bool]:
    """The (alpha, radius) to take from the losses of the trials: the first within `limit`, else that of least loss."""
    for trial, loss in losses.items():
        if loss <= limit:
            return trial, True
    return min(losses, key=lambda trial: losses[trial]), False


def chosen_by_pilot(results: Results) -> tuple[float | None, float | None]:
    """(radius, alpha); None without a pilot."""
    rows = results.of(measure="pilot-choice")
    return (rows[0]["value"], rows[0]["alpha"]) if rows else (None, None)


def _loss(
    plan: StudyPlan,
    work: Path,
    seed: int,
    arm: Arm,
    trial: tuple[float, float] | None,
    results: Results,
    keep: Keep,
) -> float:
    """The clean held-out loss after the pilot's steps; of standard training without a `trial`."""
    alpha, radius = trial or (None, None)
    cell = f"pilot/seed{seed}/" + ("standard" if trial is None else f"alpha{alpha:g}-radius{radius:g}")
    if not results.has(cell):
        began, end = time.monotonic(), plan.start_iters + plan.pilot_iters
        own: dict[str, Any] = {"save": work / cell, "exit-interval": end, "eval-interval": end, "keep-last": 1}
        options = {**arm_options(plan, work, seed, arm, resolved(arm.options, radius, alpha)), **own}
        (held_out,) = read_lines(run_to_end(options) / VALIDATION_FILE)
        row = {"measure": "pilot-loss", "radius": radius, "alpha": alpha, "value": held_out["lm_loss"]}
        keep(cell, [row, {"measure": SECONDS, "value": time.monotonic() - began}])
    return float(results.of(cell=cell, measure="pilot-loss")[0]["value"])
