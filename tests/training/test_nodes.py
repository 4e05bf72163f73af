"""Two nodes on one machine, started by examples/launch_many_nodes.sh: one loses its worker, both continue together."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.training.runs import arguments, launch, read_rows, without_timing
from tests.training.test_torchrun import ROOT, num_rows, wait_for

OPTIONS = {"tensor_model_parallel_size": 2, "train_iters": 120, "save_interval": 5, "global_batch_size": 4}


def free_port():
    """A port with no listener, below the range from which the system assigns free ports."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start_node(port, argv, log):
    """The launcher unchanged, with one process per node."""
    settings = {"HEAD": "localhost", "NODES": "2", "GPUS": "1", "PORT": str(port), "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as stream:
        return subprocess.Popen(
            ["bash", ROOT / "examples" / "launch_many_nodes.sh", *argv],
            cwd=ROOT,
            env={**os.environ, **settings, "PATH": path},
            stdout=stream,
            stderr=stream,
        )


def worker_of(node):
    """The training process below a node's torchrun, None while there is none."""
    for child in psutil.Process(node.pid).children(recursive=True):
        if "pretrain_bert_alum.py" in child.cmdline() and "torch.distributed.run" not in child.cmdline():
            return child
    return None


@pytest.mark.slow
@pytest.mark.parametrize("hurt", [0, 1], ids=["head", "other"])
def test_both_nodes_restart_when_one_loses_its_worker(prefix, tmp_path, hurt):
    straight = launch(2, prefix, tmp_path / "straight", **OPTIONS)
    run, port = tmp_path / "run", free_port()
    run.mkdir()
    argv = arguments(prefix, run, load=run, **OPTIONS)
    nodes = [start_node(port, argv, tmp_path / f"log-{number}") for number in range(2)]
    try:
        wait_for(lambda: num_rows(run) > 20, 300)
        first = [worker_of(node) for node in nodes]
        assert all(first)
        os.kill(first[hurt].pid, signal.SIGKILL)
        time.sleep(1)
        assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            if node.poll() is None:
                for child in psutil.Process(node.pid).children(recursive=True):
                    child.kill()
                node.kill()
    assert without_timing(read_rows(run)) == without_timing(straight)
