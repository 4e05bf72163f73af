"""Saves checkpoints that are complete or absent, in the foreground or in a background thread.

A save is: stage (copy tensors if training continues meanwhile) -> write into a temporary folder -> SHA-256 of every
file -> COMPLETE -> fsync -> rename -> record as latest -> delete older ones. All ranks agree on the outcome of every
stage: an error on one (disk full, quota, I/O) becomes the same OSError on all, and the temporary folder is removed.

Tensors go through PyTorch's distributed checkpoint writer in megatron-core's torch_dist layout; megatron-core's own
writer forks a process per file and cannot report a full disk on every rank, so it is not used. All coordination runs
over a gloo group of its own, so that a background thread can use it while training uses the others.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import (
    ShardDistribution,
    determine_main_replica_uniform_distribution,
)
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException

from megatron_alum.checkpoint import folder as layout
from megatron_alum.checkpoint.agreement import reason, together
from megatron_alum.checkpoint.metadata import METADATA_FILE
from megatron_alum.config.words import data_size

SPACE_MARGIN = 1.02
"""bytes required on disk per byte of tensors: headers, index and small files"""


@dataclass(frozen=True)
class CheckpointContent:
    """This rank's part of everything that one checkpoint holds."""

    sharded: dict[str, Any]
    """nested state dict of megatron-core ShardedTensors and plain values; the plain ones go to common.pt"""
    rng: dict[str, Any]
    """random states of this rank (tensors and plain values)"""
    config: dict[str, Any]
    """config.json"""
    tokenizer: Path | None
    """folder to copy, or None"""


class CheckpointSaver:
    """Saves into one run's folder; at most one save is in flight."""

    def __init__(
        self,
        root: str | Path,
        *,
        keep_last: int,
        in_background: bool,
        copies: dist.ProcessGroup | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        """Must be called by all ranks at the same point: it creates a process group.

        The ranks of `copies` hold the same tensors and share the work of writing them. Rank 0 calls `confirm` before a
        checkpoint appears; if it raises OSError, the checkpoint is abandoned.
        """
        self._confirm = confirm
        self.root = Path(root)
        self.keep_last = keep_last
        self.in_background = in_background
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._validated = False
        self._copies = copies
        self._shares: ShardDistribution | None = None

    def prepare(self) -> None:
        """Create the folder and remove what interrupted saves left. Raises: OSError on all ranks."""

        def make() -> None:
            self.root.mkdir(parents=True, exist_ok=True)
            for left in layout.leftovers(self.root):
                shutil.rmtree(left)

        together(self._group, make, only_leader=True)

    def save(self, iteration: int, content: CheckpointContent) -> None:
        """Write the checkpoint of `iteration`; with `in_background` returns once the tensors are copied.

        Raises: OSError on all ranks when this save, or the previous one in the background, could not be written.
        """
        self.wait()
        sharded, common = save_preprocess(content.sharded, validate_access_integrity=not self._validated)
        common = _to_cpu(common)  # it may be read on a machine without a GPU
        self._validated = True
        self._share_out(sharded)
        tensors = _local_tensors(sharded)
        self._check_space(tensors)
        if not self.in_background:
            self._write(iteration, content, sharded, common)
            return
        for tensor in tensors:
            assert tensor.data is not None
            tensor.data = tensor.data.detach().to("cpu", copy=True)
        self._thread = threading.Thread(target=self._guarded, args=(iteration, content, sharded, common), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is in flight. Raises: the OSError of the save that was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    @property
    def failed(self) -> bool:
        """Whether a background save has failed on this rank; `wait` raises it."""
        return self._failure is not None

    def close(self) -> None:
        """Wait for the save in flight and destroy the process group."""
        try:
            self.wait()
        finally:
            dist.destroy_process_group(self._group)

    def _guarded(self, *args: Any) -> None:
        try:
            self._write(*args)
        except BaseException as error:  # handed to the training thread
            self._failure = error

    def _share_out(self, sharded: Any) -> None:
        """Mark which of the tensors held by several ranks this rank writes: shares of equal size, agreed upon once."""
        if self._copies is None:
            return
        if self._shares is None:
            self._shares = determine_main_replica_uniform_distribution(sharded, self._copies)
        distribute_main_replicas_with_precomputed_distribution(sharded, self._copies, self._shares)

    def _check_space(self, tensors: list[ShardedTensor]) -> None:
        local = sum(t.data.numel() * t.data.element_size() for t in tensors if t.data is not None)
        sizes: list[int] = [0] * dist.get_world_size(self._group)
        dist.all_gather_object(sizes, local, group=self._group)
        needed = int(sum(sizes) * SPACE_MARGIN)

        def check() -> None:
            free = shutil.disk_usage(self.root).free
            if free < needed:
                raise OSError(
                    f"{self.root} must have {data_size(needed)} free for a checkpoint, but has {data_size(free)} "
                    "instead. Free space, or set --save to another disk; the last checkpoint is untouched."
                )

        together(self._group, check, only_leader=True)

    def _write(self, iteration: int, content: CheckpointContent, sharded: Any, common: dict[str, Any]) -> None:
        temporary = layout.temporary_folder(self.root, iteration)
        try:
            together(self._group, lambda: temporary.mkdir(parents=True), only_leader=True)
            names = self._write_tensors(temporary, sharded)
            names += together(self._group, lambda: _write_own_files(temporary, content)) or []
            shared = together(self._group, lambda: _write_shared_files(temporary, content, common), only_leader=True)
            self._seal(temporary, names + (shared or []))
            together(self._group, lambda: self._publish(temporary, iteration), only_leader=True)
        except OSError as error:
            if dist.get_rank(self._group) == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"The checkpoint of iteration {iteration} could not be written to {self.root}: {error}. "
                "Nothing of it was kept; checkpoints before it are untouched."
            ) from None
        try:
            together(self._group, lambda: self._tidy(iteration), only_leader=True)
        except OSError as error:
            raise OSError(
                f"{layout.LATEST_FILE} could not be written to {self.root}: {error}. "
                f"The checkpoint of iteration {iteration} itself is complete; continue with --load."
            ) from None

    def _write_tensors(self, temporary: Path, sharded: Any) -> list[str]:
        """Names of this rank's files."""
        renamed, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
        state = mcore_to_pyt_state_dict(renamed, False)
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        writer = _Writer(temporary, single_file_per_rank=True, sync_files=True, thread_count=1)
        if self.in_background:  # its tensors are on the CPU; copying ahead would wait, on all ranks, for GPU 0
            writer.per_thread_copy_ahead = 0
        try:
            dcp.save(state, storage_writer=writer, planner=planner, process_group=self._group)
        except CheckpointException as error:
            raise OSError(_reason(error)) from None
        return sorted(writer.names)

    def _seal(self, temporary: Path, names: list[str]) -> None:
        """Flush all files to the disk and write their SHA-256 into COMPLETE; each rank hashes the files `names` that it
        has written. The folder is not listed: on a network file system the listing may lag.
        """

        def hash_share() -> dict[str, str]:
            for name in names:
                layout.sync(temporary / name)
            return {name: layout.hash_file(temporary / name) for name in names}

        def mark() -> None:
            for path in temporary.rglob("*"):
                if path.is_dir():
                    layout.sync(path)
            layout.write_durably(temporary / layout.COMPLETE_FILE, text)

        shares: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(shares, together(self._group, hash_share), group=self._group)
        digests = {name: digest for share in shares for name, digest in share.items()}
        text = json.dumps({"files": dict(sorted(digests.items()))}, indent=1)
        together(self._group, mark, only_leader=True)

    def _publish(self, temporary: Path, iteration: int) -> None:
        self._confirm()
        final, replaced = layout.iteration_folder(self.root, iteration), layout.replaced_folder(self.root, iteration)
        if final.exists():  # a damaged or superseded checkpoint of the same iteration
            final.rename(replaced)
        temporary.rename(final)

    def _tidy(self, iteration: int) -> None:
        """What follows the rename that made a checkpoint: record it as the latest, delete what it replaces."""
        layout.sync(self.root)
        layout.write_durably(self.root / layout.LATEST_FILE, f"{iteration}\n")
        shutil.rmtree(layout.replaced_folder(self.root, iteration), ignore_errors=True)
        self._prune(newest=iteration)

    def _prune(self, *, newest: int) -> None:
        """Delete all but the newest `keep_last` complete checkpoints; the one just written is among those kept."""
        if not self.keep_last:
            return
        whole = [i for i in layout.list_iterations(self.root) if (self._folder(i) / layout.COMPLETE_FILE).is_file()]
        older = [i for i in whole if i != newest]
        for iteration in older[: max(0, len(older) - (self.keep_last - 1))]:
            shutil.rmtree(self._folder(iteration), ignore_errors=True)

    def _folder(self, iteration: int) -> Path:
        return layout.iteration_folder(self.root, iteration)


def _local_tensors(sharded: Any) -> list[ShardedTensor]:
    """The tensors this rank writes."""
    entries = list(nested_values(sharded))
    strange = [entry for entry in entries if isinstance(entry, ShardedBase) and not isinstance(entry, ShardedTensor)]
    assert not strange, f"only tensors are stored, not {strange[0]}: pickled objects would have to be unpickled"
    return [entry for entry in entries if isinstance(entry, ShardedTensor) and is_main_replica(entry.replica_id)]


def _to_cpu(value: Any) -> Any:
    """Nested containers with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value


def _write_own_files(temporary: Path, content: CheckpointContent) -> list[str]:
    """Names of the files beside the tensors that every rank writes."""
    name = f"rng_{dist.get_rank():05d}.pt"
    _save(content.rng, temporary / name)
    return [name]


def _write_shared_files(temporary: Path, content: CheckpointContent, common: dict[str, Any]) -> list[str]:
    """Names of the files that the leader writes."""
    _save(common, temporary / COMMON_STATE_FNAME)
    save_config(CheckpointingConfig("torch_dist", 1), str(temporary))
    layout.write_durably(temporary / layout.CONFIG_FILE, json.dumps(content.config, indent=1) + "\n")
    names = [COMMON_STATE_FNAME, CONFIG_FNAME, layout.CONFIG_FILE, METADATA_FILE]  # the last by dcp
    if content.tokenizer is not None:
        copies = temporary / layout.TOKENIZER_FOLDER
        copies.mkdir()
        for path in content.tokenizer.iterdir():  # shutil.copytree hides the disk's error in a list
            shutil.copyfile(path, copies / path.name)
            names.append(f"{layout.TOKENIZER_FOLDER}/{path.name}")
    return names


class _Writer(dcp.FileSystemWriter):
    """PyTorch's writer of tensor files, whose errors are the operating system's; `names` are the files it has written
    on this rank.
    """

    names: frozenset[str] = frozenset()

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this rank's file. Raises: OSError."""
        try:
            written = super().write_data(plan, planner)
            self.names = frozenset(result.storage_data.relative_path for result in written.value())
            if not self.names:  # a rank with nothing to write still creates its file, which nothing would list
                (Path(self.path) / f"{plan.storage_data.prefix}0.distcp").unlink(missing_ok=True)
            return written
        except RuntimeError as error:
            raise _system_error(error) from None


def _save(value: Any, path: Path) -> None:
    """torch.save whose errors are the operating system's. Raises: OSError."""
    try:
        with path.open("wb") as stream:
            torch.save(value, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:
        raise _system_error(error) from None


def _system_error(error: BaseException) -> OSError:
    """The disk's error: torch's zip writer wraps its own around the stream's OSError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return OSError(str(error).splitlines()[0])


def _reason(error: CheckpointException) -> str:
    """The first failing rank's error, one line."""
    failures: dict[int, Any] = error.failures
    rank, (exception, _) = sorted(failures.items())[0] if failures else (0, (error, None))
    text = reason(exception) if isinstance(exception, OSError) else str(exception)
    return f"rank {rank}: {text.splitlines()[0] if text else type(exception).__name__}"
