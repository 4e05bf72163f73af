"""The time a plan takes: the seconds of every cell, from similar cells that are done, else from a timed step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from megatron_alum.cli.pretrain import options_of_start
from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.config.words import duration
from megatron_alum.objective.micro_batch import batch_plan
from megatron_alum.parallel import joined
from megatron_alum.study.cells import Cell, cells_of, task_of
from megatron_alum.study.corpora import prepare_texts
from megatron_alum.study.plan import Arm, StudyPlan
from megatron_alum.study.pretraining import arguments, start_options
from megatron_alum.study.rows import SECONDS, Results
from megatron_alum.training.dry_run import time_iteration
from megatron_alum.training.state import build_state

OVERHEAD = 15.0
"""seconds that a cell takes besides its steps: building the network, saving, exporting"""
PASSES = {"none": 3.0, "r-drop": 6.0, "alum": 8.0, "alum-normalized": 8.0, "smart": 8.0, "freelb": 9.0}
"""forward passes that a step of fine-tuning costs, by method"""
FINETUNE_SHARE = 0.2
"""of a pre-training step's cost for as many sequences of full length, as measured on SST-2 and NCBI-disease: no
vocabulary head, bfloat16, and texts far shorter than the longest"""


def passes_of(arm: Arm) -> float:
    """F of a step of an arm: docs/choosing.md."""
    if arm.options.get("alum-alpha") == 0:
        return 3.0
    steps = int(arm.options.get("alum-num-ascent-steps", 1))
    return 3.0 + 2.0 * steps + (0.0 if arm.options.get("alum-ascent") == "label" else 3.0)


def step_seconds(plan: StudyPlan, work: Path, results: Results) -> float:
    """Of a standard step: from a common start that is done, else timed now."""
    measured = [row["value"] for row in results.of(measure="step-seconds") if row["cell"].startswith("start/")]
    if measured:
        return statistics.fmean(measured)
    prepare_texts(plan, work)
    options = start_options(plan, work, plan.seeds[0])
    config = parse_config(RunConfig, arguments(options), infer=options_of_start)
    with joined(config.parallel) as groups:
        state = build_state(config, groups)
        return time_iteration(state, batch_plan(config, groups), "standard")


def seconds_of(plan: StudyPlan, cell: Cell, step: float) -> float:
    """An estimate from the seconds of a standard step."""
    forward = step / 3
    if cell.kind == "start":
        return plan.start_iters * step + OVERHEAD
    if cell.kind == "train":
        arm = plan.arm(cell.arm)
        return (plan.total_iters_of(arm) - plan.start_iters) * passes_of(arm) * forward + OVERHEAD
    if cell.kind == "probe":
        probes = plan.probes
        return probes.batches * (2 + len(probes.radii) * (2 * probes.steps + 1)) * forward + OVERHEAD
    if cell.kind == "pilot":
        assert plan.pilot is not None
        runs = 1 + len(plan.pilot.radii) * len(plan.pilot.alphas)
        return runs * (plan.pilot_iters * 8 * forward + OVERHEAD)
    if cell.kind == "best":
        return 0.0
    task = task_of(plan, cell)
    sequences = int(task.options.get("max-train-samples", 1000)) * float(task.options.get("num-train-epochs", 3))
    batch, length = plan.pretraining.get("global-batch-size", 256), plan.pretraining.get("seq-length", 512)
    longer = float(task.options.get("max-seq-length", length)) / float(length)
    flags = {**task.methods, **task.original_methods}.get(cell.method, {})
    passes = PASSES[str(flags.get("method", "none"))]
    trained = sequences / float(batch) * longer * passes * forward * FINETUNE_SHARE
    attacks = len(task.radii) * (2 * task.attack_steps + 2) if cell.kind == "finetune" else 0
    return trained + attacks * task.attacked / float(batch) * longer * forward / 2 + OVERHEAD


def listing(plan: StudyPlan, work: Path, results: Results) -> Iterator[str]:
    """One line per cell, and the hours done and remaining; the two best arms are assumed to be the first two."""
    step = step_seconds(plan, work, results)
    yield f"a standard step takes {step:.2f} s here"
    done = {row["cell"]: row["value"] for row in results.of(measure=SECONDS)}
    seen: dict[tuple[str, str, str, str], list[float]] = {}
    cells = list(cells_of(plan))
    for cell in cells:
        if cell.name in done:
            seen.setdefault(_likeness(cell), []).append(done[cell.name])
    total = 0.0
    for cell in cells:
        if cell.name in done:
            yield f"  done    {done[cell.name]:7.0f} s  {cell.name}"
            continue
        alike = seen.get(_likeness(cell))
        seconds = statistics.fmean(alike) if alike else seconds_of(plan, cell, step)
        total += seconds
        yield f"  to do   {duration(seconds):>12}  {cell.name}"
    for seed in plan.seeds:
        for task in plan.downstream:
            guessed = [
                Cell("finetune", seed, arm.name, task.task, m, s)
                for arm in plan.arms[:2]
                for m in task.methods
                for s in task.seeds
            ]
            total += sum(seconds_of(plan, cell, step) for cell in guessed)
    yield f"done {duration(sum(done.values()))}, remaining about {duration(total)}"


def _likeness(cell: Cell) -> tuple[str, str, str, str]:
    """Cells with the same key take the same time."""
    return cell.kind, cell.arm if cell.kind == "train" else "", cell.task, cell.method
