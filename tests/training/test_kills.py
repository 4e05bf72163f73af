"""SIGKILL of a rank at twenty moments, half of them during a save: torchrun restarts all, the run ends unharmed."""

import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from megatron_alum.checkpoint.folder import find_checkpoint, leftovers, list_iterations
from tests.training.runs import arguments, read_rows, without_timing
from tests.training.test_torchrun import num_rows, torchrun, wait_for

KILLS = 10
"""kills for each way of saving"""
RESTART_SECONDS = 300
"""for torchrun to notice, two processes to import torch and to make progress; long, for a busy machine"""
ITERATIONS = 200
OPTIONS = {"tensor_model_parallel_size": 2, "train_iters": ITERATIONS, "save_interval": 5, "global_batch_size": 4}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@pytest.fixture(scope="module")
def straight(prefix, tmp_path_factory):
    """The folder of an undisturbed run."""
    run = tmp_path_factory.mktemp("straight")
    assert torchrun(2, arguments(prefix, run, **OPTIONS), **QUIET).wait(timeout=900) == 0
    return run


def workers_of(process):
    """The ranks that torchrun is running now."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if any("pretrain_bert_alum.py" in word for word in child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def kill_a_rank(process, run, rng, *, during_a_save):
    """Once the restarted run makes progress, wait for the moment, then SIGKILL; returns whether it cut a save short."""
    known = num_rows(run)
    wait_for(lambda: num_rows(run) not in (0, known), RESTART_SECONDS)
    if during_a_save:
        wait_for(lambda: leftovers(run), RESTART_SECONDS)
        time.sleep(rng.uniform(0, 0.05))  # a save of this network takes several times as long
    else:
        time.sleep(rng.uniform(0, 2))
    ranks = workers_of(process)
    assert len(ranks) == 2, "the run was over before all its kills"
    os.kill(rng.choice(ranks).pid, signal.SIGKILL)
    time.sleep(0.1)  # for a rename that the other rank was about to do
    return bool(leftovers(run))


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [False, True], ids=["foreground", "background"])
def test_kills_leave_no_trace(straight, prefix, tmp_path, async_save):
    run, rng = tmp_path / "run", random.Random(20)
    run.mkdir()
    options = {**OPTIONS, "load": run, "async_save": async_save}
    process = torchrun(2, arguments(prefix, run, **options), restarts=KILLS, **QUIET)
    cut_short = sum(kill_a_rank(process, run, rng, during_a_save=number % 2 == 0) for number in range(KILLS))
    assert process.wait(timeout=900) == 0
    assert cut_short >= 2, "too few of the kills fell into a save"
    assert without_timing(read_rows(run)) == without_timing(read_rows(straight))
    assert find_checkpoint(run).name == f"iter_{ITERATIONS:07d}" == find_checkpoint(straight).name
    assert len(list_iterations(run)) <= 3 and not list(run.glob(".*iter*"))
