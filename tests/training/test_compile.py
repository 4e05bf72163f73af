"""--torch-compile: the layers are compiled, in both phases, and the run stays the same."""

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.training.runs import EXACT, arguments, largest_difference, launch, read_rows, train_quietly

TOLERANCE = 1e-4
"""relative, over a few iterations: fused kernels round differently"""
MOST_GRAPHS = 20
"""four and one more for chosen rows, with and without gradients of the parameters, in training and validation"""
SMALLEST = {"num_layers": 1, "train_iters": 2, "torch_compile": True}


def train_and_count(rank, world_size, argv):
    """One rank; returns its error, the number of graphs and where torch.compile broke one."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    refused = train_quietly(rank, world_size, argv)
    counters = torch._dynamo.utils.counters
    return refused, counters["stats"]["unique_graphs"], dict(counters["graph_break"])


def compiled(world_size, prefix, run, **options):
    answers = run_ranks(world_size, train_and_count, arguments(prefix, run, **options), timeout_seconds=1500.0)
    for refused, graphs, breaks in answers:
        assert refused is None and all("PackedAttention.forward" in where for where in breaks), breaks
        assert 2 <= graphs <= MOST_GRAPHS  # tests/models/test_compiled_layers.py counts them one by one
    return read_rows(run)


def test_two_iterations(prefix, tmp_path):
    rows = compiled(1, prefix, tmp_path / "run", **SMALLEST, **EXACT)
    expected = launch(1, prefix, tmp_path / "eager", **{**SMALLEST, "torch_compile": False}, **EXACT)
    assert [row["phase"] for row in rows] == ["standard", "alum"]
    worst = largest_difference(rows, expected, ("lm_loss", "nsp_loss", "alum_kl", "grad_norm"))
    assert max(worst.values()) < TOLERANCE, worst


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (1, {}),
        (1, {"model_type": "bert", "bf16": True}),
        (1, {"recompute_granularity": "full"}),
        (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    ],
    ids=["pre-ln", "post-ln-bf16", "recompute-full", "tp2-sp"],
)
def test_twenty_iterations(prefix, tmp_path, world_size, options):
    rows = compiled(world_size, prefix, tmp_path / "run", torch_compile=True, **EXACT, **options)
    expected = launch(world_size, prefix, tmp_path / "eager", **EXACT, **options)
    worst = largest_difference(rows, expected, ("lm_loss", "nsp_loss", "alum_kl", "grad_norm"))
    assert max(worst.values()) < (0.1 if "bf16" in options else TOLERANCE), worst
