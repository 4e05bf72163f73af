"""What --load names: a run, one of its checkpoints to go back to, or an empty folder for a new run.

    --load RUN                  the newest intact checkpoint; a fresh start if RUN is an empty folder
    --load RUN/iter_0000040     exactly this one. If RUN is also --save, the run is rolled back: newer
                                checkpoints and a copy of the metrics move to RUN/rolled_back_0001/, so that a later
                                --load RUN finds only the new branch

A job that a scheduler or torchrun restarts with an unchanged command line must not roll back its own progress: on a
restart a named checkpoint of --save means the newest one. Nothing here needs a process group.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_alum.checkpoint import folder as layout
from megatron_alum.config.stored import kept_options

METRICS_FILE = "metrics.jsonl"
ROWS_FILES = (METRICS_FILE, "performance.jsonl", "validation.jsonl")
WANDB_FILE = "wandb_run.txt"
ROLLED_BACK_FILE = "rolled_back.json"
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


@dataclass(frozen=True)
class Origin:
    """A --load that exists."""

    root: Path
    """folder of the run"""
    iteration: int | None
    """the checkpoint that is named, None for the newest"""

    @classmethod
    def of(cls, load: str) -> Origin:
        """Raises: ValueError for a path that does not exist, or that does not hold a run."""
        path = Path(load)
        if not path.is_dir():
            found = "is a file" if path.exists() else "does not exist"
            raise ValueError(
                f"--load must be the folder of a run or of one of its checkpoints, but {load} {found}. Check its "
                "spelling. To start a run, leave --load out or create the folder: a fresh start needs an empty one."
            )
        resolved = path.resolve()
        iteration = layout.named_iteration(resolved)
        if iteration is not None:
            return cls(path.parent if path.name == resolved.name else resolved.parent, iteration)
        if not layout.list_iterations(path):
            _check_empty(path)
        return cls(path, None)

    def is_folder(self, save: str | Path) -> bool:
        """Whether `save` is the folder of this run."""
        return Path(save).resolve() == self.root.resolve()

    def options(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """{option: value} that a resume takes from the run unless `given` overrides it; None for a fresh start.

        Raises: ValueError as `newest_readable` and `kept_options`.
        """
        found = self.newest_readable()
        if found is None:
            return None
        folder, config = found
        return kept_options(config["run"], given, source=str(folder)) if "layout" in config else {}

    def newest_readable(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint that will probably be loaded and its config.json; None for a fresh start.

        Called before the ranks have joined, so files are listed but not compared with their SHA-256. Raises: ValueError
        when a named checkpoint cannot be read.
        """
        if self.iteration is not None:
            folder = layout.iteration_folder(self.root, self.iteration)
            return folder, layout.read_run_config(folder)
        for iteration in reversed(layout.list_iterations(self.root)):
            folder = layout.iteration_folder(self.root, iteration)
            try:
                layout.read_complete(folder)
                return folder, layout.read_run_config(folder)
            except (ValueError, OSError):
                continue
        return None


def was_rolled_back_by_this_job(root: Path, iteration: int) -> bool:
    """Whether an earlier attempt of this job, since restarted by torchrun or Slurm, went back to `iteration`."""
    if not any(os.environ.get(name, "0") not in ("", "0") for name in _RESTARTS):
        return False
    try:
        return json.loads((root / ROLLED_BACK_FILE).read_text(encoding="utf-8")) == _rolled_back(iteration)
    except (OSError, ValueError):
        return False


def _rolled_back(iteration: int) -> dict[str, Any]:
    """The note that a job leaves when it goes back to `iteration`."""
    job = (
        os.environ.get("SLURM_JOB_ID") or f"{socket.gethostname()} {os.getppid()}"
    )  # torchrun's agent outlives workers
    return {"iteration": iteration, "job": job}


def set_aside_newer(root: Path, iteration: int) -> str | None:
    """Move what a run left after `iteration` into a folder of its own; returns what was done, None if nothing.

    Newest first, so that a crash in the middle leaves a folder whose remaining checkpoints are older.
    """
    layout.write_durably(root / ROLLED_BACK_FILE, json.dumps(_rolled_back(iteration)) + "\n")
    newer = [i for i in reversed(layout.list_iterations(root)) if i > iteration]
    if not newer:
        return None
    number = 1
    while (aside := root / f"rolled_back_{number:04d}").exists():
        number += 1
    aside.mkdir()
    for name in ROWS_FILES:
        if (root / name).is_file():
            shutil.copyfile(root / name, aside / name)
    if (root / WANDB_FILE).is_file():  # its curves cannot be rolled back: the branch gets its own run there
        (root / WANDB_FILE).rename(aside / WANDB_FILE)
    layout.write_durably(root / layout.LATEST_FILE, f"{iteration}\n")
    for later in newer:
        folder = layout.iteration_folder(root, later)
        folder.rename(aside / folder.name)
    layout.sync(aside)
    layout.sync(root)
    names = ", ".join(str(i) for i in reversed(newer))
    return (
        f"Rolled back to iteration {iteration}: the checkpoint(s) of iteration {names} and a copy of the metrics were "
        f"moved to {aside}. Delete that folder when nothing in it is needed."
    )


def _check_empty(path: Path) -> None:
    """Raise unless `path` is empty except for hidden files, or holds a run that has not saved yet."""
    entries = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if not entries or METRICS_FILE in entries or layout.LOCK_FILE in entries:
        return
    hint = "Check its spelling"
    if "config.json" in entries:
        hint = "A folder of weights starts a run with --init-from instead; or check the spelling"
    raise ValueError(
        f"--load must be the folder of a run or an empty one, but {path} holds no checkpoint (iter_0000020/) and is "
        f"not empty ({', '.join(sorted(entries)[:3])}{', ...' if len(entries) > 3 else ''}). {hint}."
    )
