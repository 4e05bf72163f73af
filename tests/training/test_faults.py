"""A rank that hangs is reported with what the others were doing; nothing is saved."""

import time
from unittest.mock import patch

import pytest
import torch

from megatron_alum.checkpoint.folder import list_iterations
from tests.helpers.distributed import run_ranks
from tests.training.runs import (
    ASCENT,
    EXACT,
    adversarial_setup,
    arguments,
    launch,
    launch_prepared,
    read_rows,
    train_quietly,
)


def train_with_a_sleeper(rank, world_size, argv):
    """Rank 1 sleeps before iteration 3, longer than the others wait for its message after it."""
    from megatron_alum.training.control import Control

    collect = Control.collect

    def sleepy(self, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        if rank == 1 and self.calls == 4:
            time.sleep(6)
        return collect(self, **kwargs)

    with patch.object(Control, "collect", sleepy):
        return train_quietly(rank, world_size, argv)


def test_a_hung_rank_times_out_with_rank_and_operation(prefix, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(
        OSError, match=r"Rank 0 \(process \d+\) lost the other ranks while it was agreeing on what follows iteration 3"
    ):
        launch_prepared(2, prefix, run, train_with_a_sleeper, distributed_timeout_minutes=0.05)
    assert list_iterations(run) == [] and len(read_rows(run)) == 3


def train_with_a_bad_gradient(rank, world_size, argv):
    """The loss of one micro-batch of iteration 3 is infinite on rank 0 alone."""
    from megatron_alum.training import step as module

    backward, calls = module.backward, []

    def poisoned(loss, scale):
        calls.append(0)
        backward(loss + float("inf") if rank == 0 and len(calls) == 10 else loss, scale)

    module.backward = poisoned
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        module.backward = backward


@pytest.mark.parametrize("layout", [{}, {"tensor_model_parallel_size": 2}], ids=["dp2", "tp2"])
def test_an_infinite_loss_on_one_rank_skips_the_step_on_all(prefix, tmp_path, layout):
    """Iteration 3 holds calls 9 to 12 (tp2) of 4 micro-batches; with 2 of them per rank (dp2) it is iteration 5."""
    rows = launch_prepared(2, prefix, tmp_path / "run", train_with_a_bad_gradient, train_iters=8, **layout)
    hit = 3 if layout else 5
    assert [row["skipped"] for row in rows] == [int(row["iteration"] >= hit) for row in rows]
    assert [row["iteration"] for row in rows if row["grad_norm"] is None] == [hit]
    clean = launch(2, prefix, tmp_path / "clean", train_iters=8, **layout)
    assert rows[hit - 1]["lm_loss"] == clean[hit - 1]["lm_loss"] and rows[hit]["lm_loss"] != clean[hit]["lm_loss"]


def flags_of_a_bad_token(rank, world_size, argv):
    """Which samples this rank considers finite when the inner gradient of rank 1's first token is infinite."""
    from megatron_alum.alum import ascent as algorithm
    from megatron_alum.objective import losses

    _config, state, micro, counts = adversarial_setup(argv)
    gradient, ascend, flags = algorithm.gradient_in_delta, losses.ascend, []

    def poisoned(*args):
        loss, g = gradient(*args)
        g[0] = float("inf") if rank == 1 else g[0]
        return loss, g

    def noting(*args, **kwargs):
        ascent = ascend(*args, **kwargs)
        flags.append(ascent.finite.tolist())
        return ascent

    algorithm.gradient_in_delta, losses.ascend = poisoned, noting
    try:
        state.objective.adversarial(micro, counts, iteration=20, loss_scale=torch.ones(()))
    finally:
        algorithm.gradient_in_delta, losses.ascend = gradient, ascend
    return flags


def test_ranks_that_share_a_sequence_agree_that_it_is_not_finite(prefix):
    """Under sequence parallelism the other rank does not hold the token, but a part of its sample."""
    split = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    first, second = run_ranks(2, flags_of_a_bad_token, arguments(prefix, "unused", **EXACT, **ASCENT, **split))
    assert first == second and len(first) == 1 and first[0].count(False) == 1


def train_with_a_sleeper_in_the_step(rank, world_size, argv):
    """Rank 1 sleeps before its fifth micro-batch: the first of iteration 2."""
    from megatron_alum.training import step as module

    micro_batch_loss, calls = module.micro_batch_loss, []

    def sleepy(*args):
        calls.append(0)
        if rank == 1 and len(calls) == 5:
            time.sleep(75)
        return micro_batch_loss(*args)

    module.micro_batch_loss = sleepy
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        module.micro_batch_loss = micro_batch_loss


@pytest.mark.slow
def test_a_rank_hung_inside_a_step_times_out_with_the_micro_batch_named(prefix, tmp_path):
    """megatron-core rounds the timeout of its groups up to a minute."""
    options = {"tensor_model_parallel_size": 2, "distributed_timeout_minutes": 1}
    with pytest.raises(OSError, match=r"Rank 0 \(.*\) lost the other ranks while it was training on micro-batch 0 of"):
        launch_prepared(2, prefix, tmp_path / "run", train_with_a_sleeper_in_the_step, **options)
    assert list_iterations(tmp_path / "run") == []
