"""The helper behind every multi-process test: results by rank, errors with their rank, hangs that end."""

import os
import time

import pytest
import torch

from tests.helpers.distributed import run_ranks, stop_pool


def _sum_of_ranks(rank, world_size, factor):
    total = torch.tensor(float(rank * factor))
    torch.distributed.all_reduce(total)
    return rank, os.getpid(), torch.get_num_threads(), total.item()


def _fail_on_rank_one(rank, world_size):
    if rank == 1:
        raise ValueError("no such luck")
    torch.distributed.barrier()


def _rank_one_never_comes(rank, world_size):
    if rank == 1:
        time.sleep(60)
    torch.distributed.barrier()


def _rank_one_dies(rank, world_size):
    if rank == 1:
        os._exit(3)
    torch.distributed.barrier()


def test_results_come_back_by_rank_and_workers_are_reused():
    stop_pool()  # workers that earlier tests have used may be due for replacement between the two calls
    first = run_ranks(2, _sum_of_ranks, 3)
    second = run_ranks(2, _sum_of_ranks, 5)
    assert [answer[0] for answer in first] == [0, 1]
    assert [answer[3] for answer in first] == [3.0, 3.0]
    assert [answer[3] for answer in second] == [5.0, 5.0]
    assert [answer[1] for answer in first] == [answer[1] for answer in second]
    assert {answer[2] for answer in first + second} == {1}


def test_an_exception_keeps_its_type_and_names_its_rank():
    with pytest.raises(ValueError, match="no such luck") as caught:
        run_ranks(2, _fail_on_rank_one)
    assert "rank 1" in str(caught.value.__cause__)
    assert "_fail_on_rank_one" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("job", "error", "timeout"), [(_rank_one_never_comes, TimeoutError, 2), (_rank_one_dies, RuntimeError, 60)]
)
def test_a_hang_or_a_death_ends_and_the_next_call_works(job, error, timeout):
    with pytest.raises(error):
        run_ranks(2, job, timeout_seconds=timeout)
    assert [answer[3] for answer in run_ranks(2, _sum_of_ranks, 1)] == [1.0, 1.0]


def _group_in_a_cycle(rank, world_size):
    """What a network leaves: a group that refers to itself by what it is held by."""
    holder = {"group": torch.distributed.new_group()}
    holder["itself"] = holder


def _num_threads(rank, world_size):
    return len(os.listdir("/proc/self/task"))


def test_no_thread_of_a_former_group_stays():
    run_ranks(2, _group_in_a_cycle)
    before = run_ranks(2, _num_threads)
    for _ in range(3):
        run_ranks(2, _group_in_a_cycle)
    assert run_ranks(2, _num_threads) == before


def _visible_gpus(rank, world_size):
    return os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()


def test_workers_see_no_gpu_unless_the_tests_are_asked_to_use_it(device):
    if device.type != "cpu":
        pytest.skip("--device cuda was asked for")
    assert run_ranks(2, _visible_gpus) == [("", 0)] * 2
