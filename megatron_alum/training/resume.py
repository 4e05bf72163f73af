"""Whether and from where a run continues, what it takes over, and what may not have changed since."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from megatron_alum.checkpoint.agreement import together
from megatron_alum.checkpoint.folder import COMPLETE_FILE, iteration_folder, list_iterations, read_run_config
from megatron_alum.checkpoint.load import newest_valid, verify
from megatron_alum.checkpoint.origin import Origin, set_aside_newer, was_rolled_back_by_this_job
from megatron_alum.config.cli import config_to_dict
from megatron_alum.config.run import RunConfig
from megatron_alum.config.stored import KIND_OF, Kind, differences
from megatron_alum.convert.foreign import instead_of_a_run
from megatron_alum.data.sampling.blend import parse_data_path
from megatron_alum.parallel import ProcessGroups
from megatron_alum.training.state import data_fingerprint


class Resume(NamedTuple):
    """A checkpoint to continue from."""

    folder: Path
    """iter_0000040/"""
    stored: dict[str, Any]
    """its config.json"""
    rolls_back: bool
    """whether --load named it in the folder of --save, so that newer checkpoints there must be set aside"""

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return int(self.stored["iteration"])


def origin_of(load: str) -> Origin:
    """What --load names. Raises: ValueError for a path that does not exist or does not hold a run."""
    path = Path(load)
    is_known = bool(list_iterations(path)) or (path / COMPLETE_FILE).is_file()
    if path.exists() and not is_known and (reason := instead_of_a_run(path)):
        raise ValueError(f"--load: {reason}")
    return Origin.of(load)


def check_save_folder(config: RunConfig) -> None:
    """Raises: ValueError when --save holds checkpoints that this run would mix with its own."""
    save, load = config.checkpoint.save, config.checkpoint.load
    if save is None or not list_iterations(Path(save)):
        return
    if load is None or not origin_of(load).is_folder(save):
        raise ValueError(
            f"--save must be a folder without checkpoints, but {save} holds some. "
            f"Continue that run with --load {save}, or choose another folder."
        )


def find_resume(config: RunConfig, groups: ProcessGroups) -> Resume | None:
    """The checkpoint to continue from; None for a fresh start. Collective.

    Raises: ValueError when --load names nothing to start from, or a run of another model, schedule or corpus.
    """
    load = config.checkpoint.load
    if load is None:
        return None
    origin = origin_of(load)
    assert config.checkpoint.save is not None
    in_place = origin.is_folder(config.checkpoint.save)
    rolls_back = in_place and origin.iteration is not None and not _was_rolled_back(origin, groups)
    if origin.iteration is None or (in_place and not rolls_back):  # a restarted job continues where it stopped
        folder = newest_valid(origin.root, groups.world)
    else:
        folder = iteration_folder(origin.root, origin.iteration)
        verify(folder, groups.world)
    if folder is None:
        return None
    stored = read_run_config(folder)
    notes = check_compatible(config, stored, folder)
    if groups.world_rank == 0 and notes:
        print("\n".join(notes), file=sys.stderr, flush=True)
    return Resume(folder, stored, rolls_back)


def _was_rolled_back(origin: Origin, groups: ProcessGroups) -> bool:
    """Whether this is a restart of a job that has already rolled back and trained on since. Collective."""
    assert origin.iteration is not None
    answer = [groups.world_rank == 0 and was_rolled_back_by_this_job(origin.root, origin.iteration)]
    dist.broadcast_object_list(answer, src=0, group=groups.world)
    return answer[0]


def roll_back(resume: Resume, groups: ProcessGroups) -> None:
    """Set aside what is newer than a named checkpoint of --save. Collective. Raises: OSError on all ranks alike."""
    done = together(groups.world, lambda: set_aside_newer(resume.folder.parent, resume.iteration), only_leader=True)
    if done is not None:
        print(done, file=sys.stderr, flush=True)


def finished_note(config: RunConfig, resume: Resume | None) -> str | None:
    """What to say of a run that has nothing left to do; None where it has."""
    if resume is None or resume.iteration < config.last_iteration:
        return None
    limit = "--train-iters" if config.last_iteration == config.training.train_iters else "--exit-interval"
    remedy = " and --override-schedule" if limit == "--train-iters" else ""
    return (
        f"Nothing to do: {resume.folder} has iteration {resume.iteration} of {config.last_iteration} ({limit}). "
        f"Train on with a larger {limit}{remedy}."
    )


def check_compatible(config: RunConfig, stored: dict[str, Any], folder: Path) -> list[str]:
    """The permitted differences from the checkpoint, one line each.

    Raises: ValueError naming the first option that must equal the checkpoint's but does not.
    """
    if "layout" not in stored:
        raise ValueError(
            f"--load must name a run to continue, but {folder} holds weights alone (from megatron-alum convert). "
            "Start a run from them with --init-from instead."
        )
    notes = []
    if stored["unknown_options"]:
        names = ", ".join(stored["unknown_options"])
        notes.append(f"WARNING: {folder} was trained with options that this version does not have: {names}.")
    for name, (before, now) in differences(stored["run"], config_to_dict(config)).items():
        kind = KIND_OF[name]
        if kind is not Kind.METHOD and not (kind is Kind.SCHEDULE and config.training.override_schedule):
            raise ValueError(f"{_flag(name)} must be {before} as in {folder}, but is {now} instead. {kind.value}")
        notes.append(f"{_flag(name)}: {before} in {folder}, {now} from now on")
    return notes + check_corpus(config, stored, folder)


def check_corpus(config: RunConfig, stored: Mapping[str, Any], folder: Path) -> list[str]:
    """Compare shards and weights with the checkpoint's; returns the permitted differences. Raises: ValueError."""
    before, now = list(stored["run"]["data_path"]), list(config.data.data_path)
    (old_prefixes, old_weights), (prefixes, weights) = parse_data_path(before), parse_data_path(now)
    if len(prefixes) != len(old_prefixes):
        raise ValueError(
            f"--data-path must name {len(old_prefixes)} shard(s) as in {folder}, but names {len(prefixes)} instead. "
            + Kind.CORPUS.value
        )
    if data_fingerprint(config, weights=old_weights) != stored["data_sha256"]:
        raise ValueError(
            f"--data-path must name the corpus that {folder} was trained on, but its files, or their order, differ (by "
            f"their SHA-256). {Kind.CORPUS.value}"
        )
    notes = []
    if len(prefixes) > 1 and not _same_blend(old_weights, weights):
        old, new = (" ".join(map(str, w)) if w else "none (in proportion to tokens)" for w in (old_weights, weights))
        if not config.training.override_schedule:
            raise ValueError(
                f"--data-path must have the weights {old} as in {folder}, but has {new} instead. {Kind.SCHEDULE.value}"
            )
        notes.append(f"--data-path: weights {old} in {folder}, {new} from now on")
    if prefixes != old_prefixes:
        notes.append(f"--data-path: {' '.join(old_prefixes)} is now read from {' '.join(prefixes)} (same fingerprint)")
    return notes


def _same_blend(old: list[float] | None, new: list[float] | None) -> bool:
    """Whether two lists of weights, whatever their scale, give the same proportions."""
    if old is None or new is None:
        return old is new
    pairs = zip(old, new, strict=True)
    return all(math.isclose(a / sum(old), b / sum(new), rel_tol=1e-12) for a, b in pairs)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
