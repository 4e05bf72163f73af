"""Runs the cells of a plan that are not done yet, in order, and reports the time that the whole plan takes.

Everything may be killed at any moment: the trainers continue from their checkpoints, and a cell's rows are written
atomically. Rows alone are enough to go on elsewhere: a network that a cell starts from is trained again, with the same
seeds and samples, where the work folder does not hold it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from megatron_alum.report.machine import current_commit, processor_name
from megatron_alum.study.cells import BEST, Cell, all_cells
from megatron_alum.study.corpora import prepare_texts
from megatron_alum.study.downstream import best_arms, discard_output, fine_tune
from megatron_alum.study.pilot import chosen_by_pilot, run_pilot
from megatron_alum.study.plan import Arm, StudyPlan, resolved
from megatron_alum.study.pretraining import (
    discard_checkpoints,
    hf_folder,
    run_folder,
    start_checkpoint,
    train_arm,
    train_start,
)
from megatron_alum.study.probes import probe
from megatron_alum.study.rows import SECONDS, Results, Row


class Study:
    """A plan, the folder of its work and its results."""

    def __init__(self, plan: StudyPlan, work: Path, results: Results) -> None:
        self.plan, self.work, self.results = plan, work, results
        self.place = place()

    def run(self) -> None:
        """Run all cells that are not done, printing a line for each; the trainers' output goes to log.txt in the work
        folder."""
        self.work.mkdir(parents=True, exist_ok=True)
        transformers.utils.logging.set_verbosity_error()  # heads that are new or unused are meant to be
        prepare_texts(self.plan, self.work)
        for cell in all_cells(self.plan, self.results):
            if not self.results.has(cell.name):
                began = time.monotonic()
                with (self.work / "log.txt").open("a", encoding="utf-8") as log:
                    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                        differing = self._restore(cell)
                        rows = list(self._rows(cell))
                seconds = time.monotonic() - began
                self._keep(cell, [*rows, {"measure": SECONDS, "value": round(seconds, 1)}])
                print("\n".join([*differing, f"{time.strftime('%H:%M:%S')} {cell.name}: {seconds:.0f} s"]), flush=True)
            self._tidy(cell)

    def _rows(self, cell: Cell) -> Iterable[Row]:
        """What one cell gives."""
        plan, work = self.plan, self.work
        if cell.kind == "start":
            return train_start(plan, work, cell.seed)
        if cell.kind == "pilot":
            return [run_pilot(plan, work, cell.seed, self.results, self._keep_trial)]
        if cell.kind == "train":
            arm = plan.arm(cell.arm)
            return train_arm(plan, work, cell.seed, arm, self.options_of(arm))
        if cell.kind == "probe":
            return probe(plan, work, cell.seed, cell.arm)
        if cell.kind == "best":
            first = self.results.of(measure=BEST)
            chosen = first[0]["value"] if first else list(best_arms(plan, self.results, cell.seed))
            return [{"measure": BEST, "value": chosen}]
        return fine_tune(plan, work, cell)

    def _restore(self, cell: Cell) -> list[str]:
        """Train again what the cell starts from where only its rows are left; a sentence for each network that came out
        otherwise, as it does on another kind of processor.
        """
        plan, work, seed, said = self.plan, self.work, cell.seed, []
        if cell.kind in ("train", "pilot") and not start_checkpoint(plan, work, seed).is_dir():
            said += self._compared(f"start/seed{seed}", train_start(plan, work, seed))
        if cell.kind in ("probe", "finetune", "curve") and seed:
            arm = plan.arm(cell.arm)
            if not hf_folder(plan, work, seed, arm.name, cell.iteration).is_dir():
                before = Cell("train", seed, arm.name)
                said += self._restore(before)
                said += self._compared(before.name, train_arm(plan, work, seed, arm, self.options_of(arm)))
        return said

    def _compared(self, cell: str, again: Iterable[Row]) -> list[str]:
        """What to say where the losses of a network that was trained again are not those of its rows."""
        now = [row["value"] for row in again if row["measure"] == "held-out-loss"]
        kept = [row["value"] for row in self.results.of(cell=cell, measure="held-out-loss")]
        if now == kept:
            return []
        return [
            f"{cell} was trained again; its held-out loss is {now[-1]:.6f}, but was {kept[-1]:.6f}. Delete the rows "
            "that depend on it to measure them on one network."
        ]

    def options_of(self, arm: Arm) -> dict[str, Any]:
        """An arm's options with what the pilot chose."""
        return resolved(arm.options, *chosen_by_pilot(self.results))

    def _keep(self, cell: Cell, rows: list[Row]) -> None:
        common: dict[str, Any] = {"seed": cell.seed}
        for name in ("arm", "task", "method", "finetune_seed"):
            if cell.task or (name == "arm" and cell.arm):
                common[name] = getattr(cell, name)
        if cell.task:
            common["iteration"] = cell.iteration
        rows[-1] = {**rows[-1], **self.place}
        self.results.add(cell.name, rows, **common)

    def _keep_trial(self, cell: str, rows: list[Row]) -> None:
        rows[-1] = {**rows[-1], **self.place}
        self.results.add(cell, rows)

    def _tidy(self, cell: Cell) -> None:
        """Delete what a finished cell no longer needs."""
        if cell.kind == "train":
            discard_checkpoints(run_folder(self.work, cell.seed, cell.arm))
        elif cell.kind in ("finetune", "curve"):
            discard_output(self.work, cell)


def place() -> dict[str, Any]:
    """Where a cell ran: commit, device, threads."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    return {"commit": current_commit(), "machine": device, "threads": torch.get_num_threads()}
