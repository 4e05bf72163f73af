"""The entry script under real torchrun: signals, a stop, a resume on another number of processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_alum.checkpoint.folder import find_checkpoint, list_iterations
from tests.training.runs import arguments, launch, read_rows

ROOT = Path(__file__).parents[2]
START_SECONDS = 90
"""two processes that import torch and megatron-core on a busy machine"""


def torchrun(processes, argv, *, restarts=0, environment=None, **kwargs):
    """The entry script on this machine, with some environment variables changed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command.append(f"--max-restarts={restarts}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen([*command, "pretrain_bert_alum.py", *argv], cwd=ROOT, env=environment, **kwargs)


def wait_for(condition, seconds=START_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the run did not get this far in time"
        time.sleep(0.05)


def num_rows(run):
    return len(read_rows(run)) if (run / "metrics.jsonl").exists() else 0


@pytest.fixture
def endless(prefix, tmp_path):
    """A TP=2 run that would take minutes, past its third iteration."""
    run = tmp_path / "run"
    argv = arguments(prefix, run, tensor_model_parallel_size=2, train_iters=100_000)
    with (tmp_path / "log").open("w") as log:
        process = torchrun(2, argv, stdout=log, stderr=log)
        try:
            wait_for(lambda: num_rows(run) >= 3)
            yield process, run
        finally:
            for child in psutil.Process().children(recursive=True):
                if process.pid in [child.pid, *[parent.pid for parent in child.parents()]]:
                    child.kill()
            process.wait()


def test_signals_save_and_the_run_continues_on_one_process(endless, prefix):
    process, run = endless
    workers = [child for child in psutil.Process(process.pid).children() if "pretrain_bert_alum.py" in child.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGUSR1)  # one rank is told, all save
    wait_for(lambda: list_iterations(run))
    saved = num_rows(run)
    wait_for(lambda: num_rows(run) > saved)  # and go on

    process.send_signal(signal.SIGTERM)  # torchrun passes it to its workers
    process.wait(timeout=60)
    iterations = list_iterations(run)
    assert find_checkpoint(run).name == f"iter_{iterations[-1]:07d}"
    assert [row["iteration"] for row in read_rows(run)] == list(range(1, iterations[-1] + 1))
    assert not list(run.glob(".*iter*"))

    last = iterations[-1] + 2
    assert len(launch(1, prefix, run, load=run, train_iters=100_000, exit_interval=last)) == last
