"""SIGTERM at the worst moments: before the first step, and again while the last checkpoint is written."""

import os
import signal

import pytest

from megatron_alum.checkpoint.folder import find_checkpoint, leftovers, list_iterations
from tests.training.runs import launch, launch_prepared, train_and_keep_stderr, train_quietly

OPTIONS = {"train_iters": 4}


def train_with_a_second_sigterm(rank, world_size, argv):
    """Every rank is told to stop after iteration 2, when the agreement on what follows is in flight: it stops after
    iteration 3. It gets the signal again during the save."""
    from megatron_alum.training.loop import CheckpointSaver, Run

    after_step, write = Run._after_step, CheckpointSaver._write_tensors

    def stop_after_two(self, *args):
        after_step(self, *args)
        if self.state.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def told_again(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(self, *args)

    Run._after_step, CheckpointSaver._write_tensors = stop_after_two, told_again
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        Run._after_step, CheckpointSaver._write_tensors = after_step, write


@pytest.mark.parametrize("async_save", [False, True], ids=["foreground", "background"])
def test_a_second_sigterm_does_not_cut_the_last_save_short(prefix, tmp_path, async_save):
    run = tmp_path / "run"
    launch_prepared(2, prefix, run, train_with_a_second_sigterm, async_save=async_save, **OPTIONS)
    assert list_iterations(run) == [3] and find_checkpoint(run).name == "iter_0000003"
    assert not leftovers(run)


def train_told_at_once(rank, world_size, argv, number):
    """Signal `number` arrives before iteration 1."""
    from megatron_alum.training.loop import Run

    iterate = Run._iterate

    def told(self):
        if self.state.iteration == 0:
            os.kill(os.getpid(), number)
        return iterate(self)

    Run._iterate = told
    try:
        return train_and_keep_stderr(rank, world_size, argv)
    finally:
        Run._iterate = iterate


def train_stopped_at_once(rank, world_size, argv):
    return train_told_at_once(rank, world_size, argv, signal.SIGTERM)


def train_asked_to_save_at_once(rank, world_size, argv):
    return train_told_at_once(rank, world_size, argv, signal.SIGUSR1)


@pytest.mark.parametrize("layout", [{}, {"use_distributed_optimizer": True}], ids=["plain", "distributed"])
def test_a_stop_before_the_first_step_saves_nothing_and_the_run_can_start_again(prefix, tmp_path, layout):
    run, options = tmp_path / "run", {**OPTIONS, **layout, "load": tmp_path / "run"}
    run.mkdir()
    assert launch_prepared(2, prefix, run, train_stopped_at_once, **options) == []
    assert list_iterations(run) == []
    assert "No checkpoint is saved: up to iteration 0 no step" in (tmp_path / "run-stderr-0").read_text()
    assert [row["iteration"] for row in launch(2, prefix, run, **options)] == [1, 2, 3, 4]


def test_a_save_asked_for_before_the_first_step_is_left_out(prefix, tmp_path):
    run = tmp_path / "run"
    rows = launch_prepared(2, prefix, run, train_asked_to_save_at_once, **OPTIONS)
    assert len(rows) == 4 and list_iterations(run) == [4]


@pytest.mark.parametrize("layout", [{}, {"use_distributed_optimizer": True}], ids=["plain", "distributed"])
def test_fp16_saves_from_its_first_finite_gradient_on(prefix, tmp_path, layout):
    """The loss scale begins so high that the first iterations overflow, and halves with each."""
    run = tmp_path / "run"
    options = {"fp16": True, "initial_loss_scale": 2.0**24, "hysteresis": 1, "train_iters": 12, **layout}
    rows = launch(1, prefix, run, **options, save_interval=1, keep_last=0, exit_interval=9)
    skipped = rows[-1]["skipped"]
    assert 1 < skipped < 9 and list_iterations(run) == list(range(skipped + 1, 10))
    assert len(launch(1, prefix, run, **options, load=run, exit_interval=10)) == 10
