"""Starts torch.distributed and megatron-core's parallel state, and returns the groups as one object.

Nothing in this project takes a group from megatron-core's global state: functions take a `ProcessGroups`, so that a
test can call them with a group of its own. Ranks, world size and rendezvous come from torchrun's environment; without
it the process is a world of one. The backend is NCCL with CUDA and gloo without, unless --distributed-backend asks for
gloo on GPUs.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from megatron_alum.compat import enable_cpu, reduce_one_bucket_at_a_time, silence_fallback_warnings
from megatron_alum.config.training import Backend, ParallelConfig
from megatron_alum.parallel.network import Node, check_addresses, raise_file_limit

silence_fallback_warnings()

from megatron.core import parallel_state, tensor_parallel  # noqa: E402

# Distance between the dropout streams of neighbouring data-parallel ranks. Larger than any tensor-parallel size, since
# megatron-core gives tensor-parallel rank r the seed + 2718 + r.
_DATA_PARALLEL_SEED_STEP = 100_003
_STAGE_SEED_STEP = 1_009  # likewise between pipeline stages


@dataclass(frozen=True)
class ProcessGroups:
    """The process groups of this rank, with its place in them.

    `world` holds all ranks, `tp` those that share each layer, `dp` those that hold the same part of the model.
    megatron-core's pipeline schedules know the ranks of the other stages themselves.
    """

    tp: dist.ProcessGroup
    dp: dist.ProcessGroup
    world: dist.ProcessGroup
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    sequence_parallel: bool = False

    @property
    def ranks_per_model(self) -> int:
        """Ranks that hold one copy of the model and see the same samples."""
        return self.tp_size * self.pp_size

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the heads and so the losses."""
        return self.pp_rank == self.pp_size - 1

    def local_tokens(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of something with a row for each token, [T, ...] -> [T/tp, ...] under sequence parallelism;
        otherwise the whole.
        """
        if not self.sequence_parallel:
            return tensor
        if len(tensor) % self.tp_size:
            raise ValueError(
                f"The tokens of a micro-batch must be a multiple of --tensor-model-parallel-size {self.tp_size} under "
                f"--sequence-parallel, but are {len(tensor)} instead."
            )
        return tensor.chunk(self.tp_size)[self.tp_rank]

    @property
    def world_rank(self) -> int:
        """Global rank of this process."""
        return dist.get_rank(self.world)

    @property
    def device(self) -> torch.device:
        """The device of this rank: its CUDA device, or the CPU."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def initialize(
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int = 1,
    sequence_parallel: bool = False,
    backend: Backend | None = None,
    timeout_seconds: float = 1800.0,
) -> ProcessGroups:
    """Joins the ranks of a torchrun job and lays them out as tensor-parallel x data-parallel x pipeline stages.

    `timeout_seconds` ends a collective that a dead or stuck rank never joins. A default process group that already
    exists is used as it is. Raises ValueError when the world size is not a multiple of the ranks of one model, for NCCL
    on a machine without GPUs or with fewer than processes, and for limits and addresses that the job cannot run with
    (network.py).
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # megatron-core overlaps by stream order
    enable_cpu()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    _check_sizes(world_size, tensor_parallel_size, pipeline_parallel_size)
    raise_file_limit(world_size)
    chosen = dist.get_backend() if dist.is_initialized() else _chosen_backend(backend)
    if torch.cuda.is_available():
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")), shared=chosen == "gloo")
    if not dist.is_initialized():
        _join(chosen, world_size, timedelta(seconds=timeout_seconds))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel_size,
        pipeline_model_parallel_size=pipeline_parallel_size,
        distributed_timeout_minutes=max(1, round(timeout_seconds / 60)),
    )
    assert dist.group.WORLD is not None
    return ProcessGroups(
        tp=parallel_state.get_tensor_model_parallel_group(),
        dp=parallel_state.get_data_parallel_group(),
        world=dist.group.WORLD,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=tensor_parallel_size,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=pipeline_parallel_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=world_size // (tensor_parallel_size * pipeline_parallel_size),
        sequence_parallel=sequence_parallel and tensor_parallel_size > 1,
    )


@contextmanager
def joined(config: ParallelConfig) -> Iterator[ProcessGroups]:
    """The groups of a run laid out as `config` says, for the body; they are destroyed if it ends normally.

    After an exception they are left alone. NCCL would wait for the other ranks before it destroys a group, and these
    may be in a collective that this rank never joins: its error would not be seen before their timeout. The process
    exits at once instead (`config.cli.main_guard`), and torchrun then ends the others.
    """
    _check_gloo_on_gpus(config)
    yield initialize(
        tensor_parallel_size=config.tensor_model_parallel_size,
        pipeline_parallel_size=config.pipeline_model_parallel_size,
        sequence_parallel=config.sequence_parallel,
        backend=config.distributed_backend,
        timeout_seconds=60.0 * config.distributed_timeout_minutes,
    )
    shutdown()


def seed_everything(seed: int, groups: ProcessGroups) -> None:
    """Seeds Python, numpy, torch and megatron-core's RNG tracker for this rank.

    Dropout outside tensor-parallel regions draws from the default generator (equal within a tensor-parallel group,
    different between data-parallel ranks and pipeline stages), dropout inside them from the tracker (different on every
    rank). Weights do not depend on any of these: `models.build_model` takes its own seed.
    """
    rank_seed = seed + _DATA_PARALLEL_SEED_STEP * groups.dp_rank + _STAGE_SEED_STEP * groups.pp_rank
    random.seed(rank_seed)
    np.random.seed(rank_seed % 2**32)
    torch.manual_seed(rank_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(rank_seed)


def shutdown() -> None:
    """Leaves all process groups; safe to call twice."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_sizes(world_size: int, tensor_parallel_size: int, pipeline_parallel_size: int) -> None:
    if world_size % (tensor_parallel_size * pipeline_parallel_size):
        stages = f" times --pipeline-model-parallel-size {pipeline_parallel_size}" if pipeline_parallel_size > 1 else ""
        raise ValueError(
            f"The number of processes must be a multiple of --tensor-model-parallel-size {tensor_parallel_size}"
            f"{stages}, but is {world_size} instead. Change the flag or torchrun's --nproc-per-node."
        )


def _check_gloo_on_gpus(config: ParallelConfig) -> None:
    if config.distributed_backend != "gloo" or not torch.cuda.is_available():
        return
    stages = config.pipeline_model_parallel_size
    for flag, given, only, why in (
        ("overlap-grad-reduce", config.overlap_grad_reduce, False, "sums tensors of a GPU one at a time"),
        ("pipeline-model-parallel-size", stages, 1, "sends no tensor from one GPU to another"),
    ):
        if given != only:
            raise ValueError(
                f"--{flag} must be {str(only).lower()} with --distributed-backend gloo on a GPU, but is "
                f"{str(given).lower()} instead: gloo {why}."
            )


def _chosen_backend(wanted: Backend | None) -> Backend:
    if wanted == "nccl" and not torch.cuda.is_available():
        raise ValueError(
            "--distributed-backend must be gloo where there is no GPU, but is nccl instead. Leave the flag out."
        )
    return wanted or ("nccl" if torch.cuda.is_available() else "gloo")


def _take_gpu(local_rank: int, *, shared: bool) -> None:
    """The GPU of this rank. NCCL refuses two ranks on one; with gloo (`shared`) they are dealt out in turn."""
    number = torch.cuda.device_count()
    if local_rank >= number and not shared:
        raise ValueError(
            f"torchrun's --nproc-per-node must be at most the number of GPUs, {number} here, but is "
            f"{os.environ.get('LOCAL_WORLD_SIZE', local_rank + 1)} instead. Lower it, let processes share GPUs by "
            "--distributed-backend gloo, or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on the CPU."
        )
    torch.cuda.set_device(local_rank % number)
    if shared:
        reduce_one_bucket_at_a_time()


def _join(backend: str, world_size: int, timeout: timedelta) -> None:
    if "MASTER_ADDR" in os.environ:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store = _of_this_attempt(store)
        nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        if nodes > 1:
            check_addresses(store, Node.here(), rank=int(os.environ["GROUP_RANK"]), number=nodes)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        return
    if world_size != 1:
        raise ValueError(
            f"WORLD_SIZE must be 1 without torchrun's rendezvous variables, but is {world_size} instead. "
            "Start with torchrun."
        )
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def _of_this_attempt(store: dist.Store) -> dist.Store:
    """The store without the entries of workers from before a restart (torchrun --max-restarts).

    torchrun's agent keeps one store over all restarts, and torch 2.13 no longer separates them: the new workers would
    connect to the dead ones' addresses. The restart count identifies the attempt on one node; on several it differs
    from node to node, so there the launchers ask torchrun for a new store each time
    (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
