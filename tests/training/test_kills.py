"""SIGKILL of a random rank at random moments, saving included: torchrun restarts all, the run ends as if unharmed."""

import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from megatron_alum.checkpoint.folder import find_checkpoint, list_iterations
from tests.training.runs import arguments, read_rows, without_timing
from tests.training.test_torchrun import num_rows, torchrun, wait_for

NUM_KILLS = 20
ITERATIONS = 400
OPTIONS = {"tensor_model_parallel_size": 2, "train_iters": ITERATIONS, "save_interval": 5, "global_batch_size": 4}
LONGEST_DELAY_SECONDS = 3.0
"""a save of this network takes a good part of a second every 5 iterations: many kills fall into one"""


def workers_of(process):
    """The ranks that torchrun has running now."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if any("pretrain_bert_alum.py" in word for word in child.cmdline())]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [False, True], ids=["foreground", "background"])
def test_twenty_kills_leave_no_trace(prefix, tmp_path, async_save):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    straight = tmp_path / "straight"
    assert torchrun(2, arguments(prefix, straight, **OPTIONS), **quiet).wait(timeout=900) == 0

    run, rng = tmp_path / "run", random.Random(20)
    options = {**OPTIONS, "load": run, "async_save": async_save}
    process = torchrun(2, arguments(prefix, run, **options), restarts=NUM_KILLS, **quiet)
    kills = 0
    while process.poll() is None and kills < NUM_KILLS:
        known = num_rows(run)
        wait_for(lambda before=known: process.poll() is not None or num_rows(run) not in (0, before))
        time.sleep(rng.uniform(0, LONGEST_DELAY_SECONDS))
        ranks = workers_of(process)
        if len(ranks) == 2:
            os.kill(rng.choice(ranks).pid, signal.SIGKILL)
            kills += 1
    assert process.wait(timeout=900) == 0
    assert kills >= NUM_KILLS // 2, "the run was over before it was hurt enough"
    assert without_timing(read_rows(run)) == without_timing(read_rows(straight))
    assert find_checkpoint(run).name == f"iter_{ITERATIONS:07d}" == find_checkpoint(straight).name
    assert len(list_iterations(run)) <= 3 and not list(run.glob(".*iter*"))
