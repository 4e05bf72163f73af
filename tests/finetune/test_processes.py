"""Data-parallel fine-tuning through accelerate: two processes train as one does on their joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


# What a Trainer of another test leaves in this process's environment would configure the workers.
INHERITED = ("ACCELERATE_", "RANK", "LOCAL_", "WORLD_", "MASTER_", "GROUP_", "TORCHELASTIC_")


def clean_environment():
    """This process's environment without launcher variables, one thread a worker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
    return {**kept, "OMP_NUM_THREADS": "1"}


def train(name, processes, batch, output):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "tests.finetune.process_worker", name, str(batch), str(output)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-12000:]
    return torch.load(f"{output}.pt", weights_only=True)


@pytest.mark.parametrize("name", ["alum", pytest.param("freelb", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_joint_batch(tmp_path, name):
    together = train(name, 2, 4, tmp_path / "two")
    alone = train(name, 1, 8, tmp_path / "one")
    for parameter in alone:
        # float32 sums in another order, amplified over three SGD steps by a network of scale 1
        torch.testing.assert_close(together[parameter], alone[parameter], rtol=1e-4, atol=1e-6, msg=parameter)
