"""Data-parallel fine-tuning through accelerate: two processes train as one does on their joint batch."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.finetune.runs import process_worker
from tests.finetune.runs.test_tools import encoder, flags, sentiment  # noqa: F401  fixtures
from tests.helpers.distributed import open_meeting_point
from tests.helpers.warm import run_script, start


def place(rank, world_size, port):
    """The environment variables that torchrun gives a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return {**{name: str(number) for name, number in numbers.items()}, **store}


def train_as(environment, *words):
    """A process as torchrun would start it."""
    os.environ |= environment
    process_worker.main(*words)


def train(name, num_processes, batch, output):
    """The parameters after three steps with this many processes; a single one has no launcher."""
    words, meeting_point = (name, str(batch), str(output)), open_meeting_point()
    if num_processes == 1:
        processes = [start(process_worker.main, *words)]
    else:
        places = [place(rank, num_processes, meeting_point.port) for rank in range(num_processes)]
        processes = [start(train_as, environment, *words) for environment in places]
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
    meeting_point = open_meeting_point()
    with ThreadPoolExecutor(2) as threads:
        places = [place(rank, 2, meeting_point.port) for rank in range(2)]
        done = list(threads.map(lambda where: run_script("tools/finetune.py", *command, environment=where), places))
    assert all(one.returncode == 0 for one in done), done[0].stderr[-6000:] + done[1].stderr[-6000:]
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["split"], row["n"]) for row in rows] == [(1, "dev", 48), (2, "dev", 48)]
    assert all(row["value"] > 0.9 and row["epochs"] == 3.0 for row in rows)
    assert [one.stdout.count("results:") for one in done] == [1, 0]
    assert (tmp_path / "out" / "model" / "config.json").is_file()
