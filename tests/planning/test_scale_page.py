"""docs/scale.md: the layouts' memory, tokens, traffic and operations are what the estimators say."""

import re
from pathlib import Path

import pytest
import yaml

from megatron_alum.config.cli import build_config
from megatron_alum.config.run import RunConfig
from megatron_alum.planning.flops import TextSize, iteration_flops
from megatron_alum.planning.memory import estimate_memory, num_parameters

ROOT = Path(__file__).parents[2]
VOCABULARY, PADDED, LENGTH = 30522, 30592, 512
LAYOUTS = {
    "split": {"use_distributed_optimizer": True},
    "SP": {"sequence_parallel": True},
    "TP 2": {"tensor_model_parallel_size": 2},
    "recompute full": {"recompute_granularity": "full"},
}


def rows():
    """The cells of each row of the table of layouts."""
    lines = (ROOT / "docs" / "scale.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [cells for cells in table if cells[0] in ("base", "large", "3.9B")]


def config_of(network, batches, layout):
    large = yaml.safe_load((ROOT / "examples" / "bert_3.9b.yaml").read_text())
    sizes = ("num-layers", "hidden-size", "num-attention-heads", "ffn-hidden-size")
    options = {name.replace("-", "_"): large[name] for name in sizes if name in large}
    options = options if network == "3.9B" else {"model_size": network}
    total, micro = (int(number.replace(",", "")) for number in batches.split(" / "))
    options |= {"seq_length": LENGTH, "global_batch_size": total, "micro_batch_size": micro, "bf16": True}
    for word in filter(None, layout.split(", ")):
        options |= LAYOUTS[word]
    return build_config(RunConfig, [options | {"data_path": ("unused",), "dry_run": True}])


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: " ".join(cells[:2] + cells[3:4]))
def test_a_layout(cells):
    network, gpus, batches, layout, memory, tokens, wire, flops = cells
    config, number = config_of(network, batches, layout), int(gpus)
    text = TextSize.full(config)
    found = estimate_memory(config, "alum", vocab_size=VOCABULARY, world_size=number, on_gpu=True, text=text)
    state = found.weights + found.gradients + found.optimizer
    parts = [f"{part / 1e9:.1f}" for part in (state, found.activations, found.head, found.total)]
    assert re.findall(r"[\d.]+", memory) == parts
    tp = config.parallel.tensor_model_parallel_size
    copies = number // tp
    assert tokens == f"{config.training.global_batch_size * LENGTH // copies:,}"
    assert flops == f"{iteration_flops(config, 'alum', text, vocab_size=VOCABULARY) / number / 1e12:,.0f}"
    sent = 6 * num_parameters(config, padded_vocab_size=PADDED, tensor_parallel_size=tp) * (copies - 1) / copies
    assert wire.split(" + ")[0] == (f"{sent / 1e9:.1f}" if copies > 1 else "")


def test_no_layout_is_missing():
    """Base, large and 3.9B on 1, 8, 64 and 512 GPUs."""
    found = {(cells[0], cells[1]) for cells in rows()}
    assert found >= {(network, gpus) for network in ("base", "large", "3.9B") for gpus in ("1", "8", "64", "512")}
