"""What a grid of runs has on disk, kept so that a kill at any moment neither loses a result nor writes one twice.

A run's DONE file appears at once and holds its rows; results.jsonl is put together from all DONE files, in the order in
which the runs ended. A checkpoint counts when the Trainer has written its last file; `elapsed` holds the seconds that
led to the newest one. The Trainer ends with the best checkpoint alone; TRAINED names it, so that a run killed in its
last evaluation need not train again from there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

DONE = "DONE"
TRAINED = "TRAINED"
ELAPSED = "elapsed"
TRAINER_STATE = "trainer_state.json"  # the Trainer writes it after everything else

Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """The end of a run's training."""

    checkpoint: str
    """name of the best checkpoint's folder"""
    epochs: float
    """passes over the training set"""
    metric: float
    """result of that checkpoint on the development set"""


def rows_if_done(folder: Path) -> list[Row] | None:
    """The rows of a complete run; None for any other."""
    done = folder / DONE
    rows: list[Row] | None = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else None
    return rows


def finish(output: Path, folder: Path, rows: list[Row]) -> None:
    """Keep the rows of a complete run and delete its checkpoints."""
    write_at_once(folder / DONE, json.dumps(rows))
    collect_results(output)
    discard_checkpoints(folder)


def discard_checkpoints(folder: Path) -> None:
    """Delete what a complete run has no more use for."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for name in (ELAPSED, TRAINED):
        (folder / name).unlink(missing_ok=True)


def keep_trained(folder: Path, trained: Trained) -> None:
    """Say that the training of a run is over."""
    write_at_once(folder / TRAINED, json.dumps(asdict(trained)))


def trained_before(folder: Path) -> Trained | None:
    """What `keep_trained` said; None while the training goes on."""
    record = folder / TRAINED
    return Trained(**json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else None


def collect_results(output: Path) -> None:
    """Write results.jsonl from the runs that are complete; without one, nothing."""
    done = sorted(output.glob(f"runs/*/{DONE}"), key=lambda path: (path.stat().st_mtime_ns, path))
    rows = [row for path in done for row in json.loads(path.read_text(encoding="utf-8"))]
    if rows:
        write_at_once(output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def best_value(output: Path) -> float:
    """The result of OUTPUT/model on the development set; minus infinity without one."""
    record = output / "best.json"
    return float(json.loads(record.read_text(encoding="utf-8"))["value"]) if record.is_file() else float("-inf")


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint of a run, to go on from; None to begin."""
    complete = [path for path in folder.glob("checkpoint-*") if _is_complete(path)]
    return str(max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]))) if complete else None


class ElapsedTime(TrainerCallback):
    """Seconds of a run, those before an interruption included up to its last checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.file, self.began = folder / ELAPSED, time.monotonic()
        self.before = float(self.file.read_text()) if self.file.is_file() and last_checkpoint(folder) else 0.0

    def seconds(self) -> float:
        """Up to now."""
        return self.before + time.monotonic() - self.began

    def on_save(self, args: Any, state: Any, control: Any, **_unused: Any) -> None:
        """Keep the time beside the checkpoint."""
        if state.is_world_process_zero:
            write_at_once(self.file, f"{self.seconds():.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_unused: Any) -> None:
        """Keep the time of the whole training."""
        self.on_save(args, state, control)


def write_at_once(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True
