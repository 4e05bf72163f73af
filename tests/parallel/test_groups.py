"""Layout of ranks and seeds of the dropout streams."""

import os

import pytest
import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import param_and_grad_buffer

from megatron_alum.config.training import ParallelConfig
from megatron_alum.parallel import initialize, joined, seed_everything, shutdown
from tests.helpers.distributed import run_ranks
from tests.helpers.warm import run_code


def _layout(rank, world_size, tensor_parallel_size):
    groups = initialize(tensor_parallel_size=tensor_parallel_size, sequence_parallel=True)
    members = {}
    for name in ("tp", "dp", "world"):
        everyone = [None] * torch.distributed.get_world_size(getattr(groups, name))
        torch.distributed.all_gather_object(everyone, rank, group=getattr(groups, name))
        members[name] = everyone
    return (
        members,
        (groups.tp_rank, groups.tp_size, groups.dp_rank, groups.dp_size),
        groups.sequence_parallel,
        groups.world_rank,
    )


def test_four_ranks_as_two_by_two():
    answers = run_ranks(4, _layout, 2)
    assert [answer[0] for answer in answers] == [
        {"tp": [0, 1], "dp": [0, 2], "world": [0, 1, 2, 3]},
        {"tp": [0, 1], "dp": [1, 3], "world": [0, 1, 2, 3]},
        {"tp": [2, 3], "dp": [0, 2], "world": [0, 1, 2, 3]},
        {"tp": [2, 3], "dp": [1, 3], "world": [0, 1, 2, 3]},
    ]
    assert [answer[1] for answer in answers] == [(0, 2, 0, 2), (1, 2, 0, 2), (0, 2, 1, 2), (1, 2, 1, 2)]
    assert [answer[2:] for answer in answers] == [(True, rank) for rank in range(4)]


def test_sequence_parallelism_means_nothing_on_one_rank():
    assert run_ranks(1, _layout, 1)[0][2] is False


def _refused(rank, world_size, tensor_parallel_size):
    with pytest.raises(ValueError) as caught:
        initialize(tensor_parallel_size=tensor_parallel_size)
    return str(caught.value)


def test_a_world_that_does_not_divide_is_refused():
    assert run_ranks(2, _refused, 3)[0] == (
        "The number of processes must be a multiple of --tensor-model-parallel-size 3, but is 2 instead. "
        "Change the flag or torchrun's --nproc-per-node."
    )


def test_a_plain_python_process_is_a_world_of_one():
    code = """
from megatron_alum.parallel import initialize, shutdown
groups = initialize(tensor_parallel_size=1)
print(groups.tp_size, groups.dp_size, groups.world_rank, groups.device)
shutdown(); shutdown()
"""
    process = run_code("import os\nfor name in ('WORLD_SIZE', 'MASTER_ADDR'): os.environ.pop(name, None)" + code)
    assert process.stdout == "1 1 0 cpu\n", process.stderr


def test_a_world_size_without_rendezvous_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert not torch.distributed.is_initialized()
    with pytest.raises(
        ValueError, match="WORLD_SIZE must be 1 without torchrun's rendezvous variables, but is 2 instead"
    ):
        initialize(tensor_parallel_size=2)


@pytest.fixture
def one_gpu(monkeypatch):
    """torch says that there is one GPU; which of them ranks took."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    return taken


@pytest.mark.parametrize("backend", [None, "nccl"])
def test_more_processes_than_gpus_are_refused(one_gpu, backend):
    with pytest.raises(
        ValueError, match="--nproc-per-node must be at most the number of GPUs, 1 here, but is 2"
    ) as error:
        initialize(tensor_parallel_size=2, backend=backend)
    assert "share GPUs by --distributed-backend gloo" in str(error.value)
    assert not torch.distributed.is_initialized() and one_gpu == []


def test_processes_share_a_gpu_through_gloo(one_gpu, monkeypatch):
    """As far as a machine without one can go: up to the other rank, which is not there."""
    monkeypatch.setattr(param_and_grad_buffer, "_coalescing_manager", param_and_grad_buffer._coalescing_manager)
    with pytest.raises(ValueError, match="WORLD_SIZE must be 1 without torchrun's rendezvous variables"):
        initialize(tensor_parallel_size=2, backend="gloo")
    assert one_gpu == [0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"overlap_grad_reduce": True},
            "--overlap-grad-reduce must be false with .* gloo on a GPU, but is true instead",
        ),
        ({"pipeline_model_parallel_size": 2}, "--pipeline-model-parallel-size must be 1 with .*, but is 2 instead"),
    ],
)
def test_what_gloo_cannot_do_on_a_gpu_is_refused(one_gpu, given, message):
    with pytest.raises(ValueError, match=message), joined(ParallelConfig(distributed_backend="gloo", **given)):
        pass
    assert one_gpu == []


def test_nccl_without_a_gpu_is_refused():
    with pytest.raises(
        ValueError, match="--distributed-backend must be gloo where there is no GPU, but is nccl instead"
    ):
        initialize(tensor_parallel_size=1, backend="nccl")
    assert not torch.distributed.is_initialized()


def test_gloo_may_be_named_where_it_is_the_default():
    with joined(ParallelConfig(distributed_backend="gloo", overlap_grad_reduce=True)) as groups:
        assert torch.distributed.get_backend(groups.dp) == "gloo"


def test_kernels_are_queued_as_megatron_core_expects_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    initialize(tensor_parallel_size=1)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    shutdown()
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    initialize(tensor_parallel_size=1)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"
    shutdown()


def _draws(rank, world_size, seed):
    seed_everything(seed, initialize(tensor_parallel_size=2))
    default = torch.rand(2)
    with tensor_parallel.get_cuda_rng_tracker().fork():
        forked = torch.rand(2)
    return default, forked


def test_dropout_streams_differ_where_they_must():
    draws = run_ranks(4, _draws, 7)  # tp ranks (0, 1) and (2, 3)
    default, forked = zip(*draws, strict=True)
    assert torch.equal(default[0], default[1]) and torch.equal(default[2], default[3])
    assert not torch.equal(default[0], default[2]), "data-parallel ranks must not share masks"
    assert len({tuple(values.tolist()) for values in forked}) == 4
    assert torch.equal(run_ranks(4, _draws, 7)[3][1], forked[3])
    assert not torch.equal(run_ranks(4, _draws, 8)[3][1], forked[3])


def test_shutdown_without_a_start_does_nothing():
    shutdown()


def _stages(rank, world_size):
    groups = initialize(tensor_parallel_size=2, pipeline_parallel_size=2)
    members = torch.distributed.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group())
    seed_everything(7, groups)
    place = (groups.pp_rank, groups.pp_size, groups.dp_size, groups.is_first_stage, groups.is_last_stage)
    return members, place, groups.ranks_per_model, torch.rand(2).tolist()


def test_four_ranks_as_two_stages_of_two():
    members, places, sizes, draws = zip(*run_ranks(4, _stages), strict=True)
    assert members == ([0, 2], [1, 3], [0, 2], [1, 3]) and sizes == (4, 4, 4, 4)
    first, last = (0, 2, 1, True, False), (1, 2, 1, False, True)
    assert places == (first, first, last, last)
    assert draws[0] == draws[1] and draws[2] == draws[3]
    assert draws[0] != draws[2], "stages must not share masks"


def _stages_refused(rank, world_size):
    with pytest.raises(ValueError) as caught:
        initialize(tensor_parallel_size=1, pipeline_parallel_size=3)
    return str(caught.value)


def test_a_world_that_does_not_divide_into_stages_is_refused():
    assert run_ranks(2, _stages_refused)[0].startswith(
        "The number of processes must be a multiple of --tensor-model-parallel-size 1 times "
        "--pipeline-model-parallel-size 3, but is 2 instead."
    )
