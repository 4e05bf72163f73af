"""Finds the newest valid checkpoint together with all ranks and loads it, on the layout it was saved with or another.

Order of the checks, each completed before the next reads anything: COMPLETE and SHA-256 of every file (shared by the
ranks) -> `.metadata` through the restricted unpickler -> megatron-core. Other files are read with weights_only or as
JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from megatron_alum.checkpoint import folder as layout
from megatron_alum.checkpoint.agreement import together
from megatron_alum.checkpoint.metadata import read_metadata


def newest_valid(root: str | Path, group: dist.ProcessGroup) -> Path | None:
    """The newest checkpoint below `root` whose files are all intact, None if there is none; the same on every rank.

    A damaged one is reported on stderr and the one before it is tried. Collective over `group`.
    Raises: ValueError when there are checkpoints but all are damaged: a fresh start would eventually delete them.
    """
    path = Path(root)
    iterations: list[Any] = [sorted(layout.list_iterations(path), reverse=True)]
    dist.broadcast_object_list(iterations, src=0)
    for iteration in iterations[0]:
        candidate = layout.iteration_folder(path, iteration)
        try:
            verify(candidate, group)
            return candidate
        except (ValueError, OSError) as error:
            if dist.get_rank(group) == 0:
                print(f"WARNING: {error} Falling back to the checkpoint before it.", file=sys.stderr, flush=True)
    if iterations[0]:
        raise ValueError(
            f"{path} must hold a valid checkpoint, but all of its {len(iterations[0])} are damaged. "
            "Restore one of them, or start a new run in another folder without --load."
        )
    return None


def verify(candidate: Path, group: dist.ProcessGroup) -> None:
    """Check marker and SHA-256 of one checkpoint, its files divided among the ranks. Raises: ValueError on all
    ranks."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)

    def check_share() -> None:
        recorded = layout.read_complete(candidate)
        layout.verify_files(candidate, recorded, sorted(recorded)[rank::size])

    together(group, check_share)


def load_checkpoint(
    folder: Path, sharded: dict[str, Any], group: dist.ProcessGroup, *, copies: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """The stored values for a nested dict of megatron-core ShardedTensors, plus the plain values of common.pt.

    Tensors are loaded into this rank's parts whatever the layout of the saving run. Ranks of `copies` need the same
    tensors: each reads a share and sends it to the others. Without `copies` every rank reads all its tensors, directly
    into those of `sharded`. Collective.
    Raises: ValueError when the folder is unsafe, damaged or of another model.
    """
    together(group, lambda: read_metadata(folder))
    strategy = get_default_load_sharded_strategy(str(folder))
    if copies is not None:
        strategy = FullyParallelLoadStrategyWrapper(strategy, copies)
    try:
        return dist_checkpointing.load(sharded, str(folder), strategy, validate_access_integrity=False)
    except (CheckpointException, CheckpointingException, KeyError, UnpicklingError) as error:
        raise ValueError(
            f"{folder} must hold the tensors of this model and optimizer, but does not ({_first_reason(error)}). "
            "Check --num-layers, --hidden-size and the other sizes against its config.json."
        ) from None


def load_model_weights(folder: str | Path, model: torch.nn.Module) -> None:
    """Load the model part of a checkpoint into `model` (a SplitBert, any layout). Collective over all ranks.

    Raises: ValueError as `load_checkpoint`.
    """
    assert dist.group.WORLD is not None
    state = load_checkpoint(Path(folder), {"model": model_sharded_state(model)}, dist.group.WORLD)
    model.load_state_dict(state["model"], strict=False)


def model_sharded_state(model: torch.nn.Module) -> dict[str, Any]:
    """The model's ShardedTensors by name; empty pickled extras that megatron-core's layers add are left out."""
    state = model.sharded_state_dict()  # type: ignore[operator]
    return {name: value for name, value in state.items() if not isinstance(value, ShardedObject)}


def whole_sharded_state(tensors: Mapping[str, Tensor]) -> dict[str, ShardedTensor]:
    """ShardedTensors, by name, of tensors that every rank holds whole and that belong to no network."""
    return {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}


def load_rng(folder: Path, rank: int) -> dict[str, Any]:
    """The random states that rank `rank` saved. Raises: ValueError when the file holds more than plain values."""
    path = folder / f"rng_{rank:05d}.pt"
    try:
        return torch.load(path, weights_only=True)
    except UnpicklingError:
        raise ValueError(
            f"{path} must hold tensors only, but names other objects. The checkpoint is refused."
        ) from None


def _first_reason(error: BaseException) -> str:
    """One line of the innermost cause."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
