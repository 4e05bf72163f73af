"""Fine-tuning and the attack on a stand-in for a GPU: no tensor on the wrong device, and a host that does not wait for
the adversarial term.
"""

import os
from collections import Counter
from unittest import mock

import pytest

from tests.finetune.runs.test_tools import encoder, flags, rows_of, run_tool, sentiment  # noqa: F401  fixtures
from tests.helpers.other_device import on_fresh_rank, other_device

METHODS = ("alum", "smart", "freelb", "r-drop")


def finetune_and_attack(rank, world_size, lines, attack):
    """Where the host waited while models were fine-tuned by each of the lines; then the attack, on the first."""
    import torch

    torch.distributed.destroy_process_group()  # a fine-tuning run is one process without groups
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name)
    with other_device() as gpu, mock.patch.dict(os.environ):
        # The trainer's: it tries the passes from x before it trains, and reads its sums when it logs.
        gpu.excepted = ("__init__", "_failure", "log")
        for line in lines:
            run_tool("finetune", *line)
        waits = Counter(gpu.waits)
        run_tool("attack", *attack)
    return dict(waits)


@pytest.mark.slow
def test_finetuning_and_attack(encoder, sentiment, tmp_path):  # noqa: F811
    """No line of ours waits in a step of any method; those of transformers and accelerate wait where they please. The
    attack's accuracy falls with its radius, as it does on the CPU."""
    lines = []
    for method in METHODS:
        line = [*flags(encoder, sentiment, tmp_path / method, "--method", method)]
        line[line.index("--num-train-epochs") + 1] = 4 if method == "alum" else 1
        line[line.index("--seeds") + 1 : line.index("--seeds") + 3] = [1]
        lines.append(line)
    lines[0] += ["--alum-epsilon", 0.01]
    attack = ["--model", tmp_path / "alum" / "model", "--task", "sst2", "--data-dir", sentiment]
    attack += ["--output", tmp_path / "attack", "--radii", 0, 1, "--max-eval-samples", 16]
    waits = on_fresh_rank(finetune_and_attack, lines, attack)
    assert [line for line in waits if " at transformers." in line], "the stand-in notices nothing"
    assert not [line for line in waits if " at megatron_alum." in line], waits
    accuracy = [row["accuracy"] for row in rows_of(tmp_path / "attack" / "attack.jsonl")]
    assert accuracy[0] > 0.9 and accuracy[1] < accuracy[0]
