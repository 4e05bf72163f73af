"""Data-parallel fine-tuning through accelerate: two processes train as one does on their joint batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.finetune.runs import process_worker
from tests.finetune.runs.test_tools import encoder, flags, sentiment  # noqa: F401  fixtures
from tests.helpers.distributed import open_meeting_point
from tests.helpers.warm import start

ROOT = Path(__file__).parents[3]


# What a Trainer of another test leaves in this process's environment would configure the workers.
INHERITED = ("ACCELERATE_", "RANK", "LOCAL_", "WORLD_", "MASTER_", "GROUP_", "TORCHELASTIC_")


def clean_environment():
    """This process's environment without launcher variables, one thread a worker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
    return {**kept, "OMP_NUM_THREADS": "1"}


def torchrun(processes, *command):
    """Run a module or script; its standard output."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launch, *map(str, command)], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-12000:]
    return done.stdout


def train_as(rank, world_size, port, *words):
    """A process as torchrun would start it."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    process_worker.main(*words)


def train(name, num_processes, batch, output):
    """The parameters after three steps of so many processes; one alone has no launcher."""
    words, meeting_point = (name, str(batch), str(output)), open_meeting_point()
    if num_processes == 1:
        processes = [start(process_worker.main, *words)]
    else:
        processes = [start(train_as, rank, num_processes, meeting_point.port, *words) for rank in range(num_processes)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return torch.load(f"{output}.pt", weights_only=True)


@pytest.mark.parametrize("name", ["alum", pytest.param("freelb", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_joint_batch(tmp_path, name):
    together = train(name, 2, 4, tmp_path / "two")
    alone = train(name, 1, 8, tmp_path / "one")
    for parameter in alone:
        # float32 sums in another order, amplified over three SGD steps by a network of scale 1
        torch.testing.assert_close(together[parameter], alone[parameter], rtol=1e-4, atol=1e-6, msg=parameter)


def test_the_tool_on_two_processes_writes_each_result_once(encoder, sentiment, tmp_path):  # noqa: F811
    """Rows, files and printed lines are those of a single process."""
    command = [word if word != 16 else 8 for word in flags(encoder, sentiment, tmp_path / "out", "--alum")]
    printed = torchrun(2, "tools/finetune.py", *command)
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["split"], row["n"]) for row in rows] == [(1, "dev", 48), (2, "dev", 48)]
    assert all(row["value"] > 0.9 and row["epochs"] == 3.0 for row in rows)
    assert printed.count("results:") == 1 and (tmp_path / "out" / "model" / "config.json").is_file()
