"""What a long run needs: replicas that agree, traces, simultaneous garbage collection, bfloat16 gradients."""

import gc
import gzip
import json
import time
from unittest.mock import Mock, patch

import pytest
import torch

from megatron_alum.training.replicas import _hash
from tests.helpers.distributed import run_ranks
from tests.training.runs import EXACT, arguments, largest_difference, launch, read_rows, train_quietly

CHECK = {"check_weight_hash_across_dp_replicas_interval": 2, "train_iters": 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_bit_and_any_swap_change_a_hash(dtype):
    values = torch.linspace(-1, 1, 257).to(dtype).view(257, 1)
    before = int(_hash(values))
    assert int(_hash(values.clone())) == before
    for place in (0, 128, 256):
        changed = values.clone()
        changed[place] = torch.nextafter(values[place], torch.tensor(2.0, dtype=dtype)) if place != 128 else 1e-30
        assert int(_hash(changed)) != before, place
    assert int(_hash(values.flip(0))) != before
    swapped = values.clone()
    swapped[[3, 4]] = values[[4, 3]]
    assert int(_hash(swapped)) != before


def train_with_a_flipped_bit(rank, world_size, argv):
    """A run in which one weight of the second rank changes by a bit after iteration 3."""
    from megatron_alum.training.loop import Run

    after_step = Run._after_step

    def flip(self, *args):
        if rank == 1 and self.state.iteration == 3:
            weight = self.state.network.encoder.layers[1].mlp.linear_fc1.weight
            with torch.no_grad():
                weight.view(torch.int32)[0, 0] ^= 1
        after_step(self, *args)

    Run._after_step = flip
    try:
        return train_quietly(rank, world_size, argv)
    finally:
        Run._after_step = after_step


def test_replicas_that_drift_apart_end_the_run(prefix, tmp_path):
    answers = run_ranks(2, train_with_a_flipped_bit, arguments(prefix, tmp_path / "run", **CHECK))
    for refused in answers:
        assert isinstance(refused, ValueError)
        assert "after iteration 4" in str(refused) and "encoder.layers.1.mlp.linear_fc1.weight" in str(refused)


def test_replicas_that_agree_do_not_end_the_run(prefix, tmp_path):
    """With the distributed optimizer, whose ranks send each other the weights, and manual garbage collection."""
    rows = launch(2, prefix, tmp_path / "run", **CHECK, use_distributed_optimizer=True, manual_gc_interval=2)
    assert len(rows) == 4


def train_watching_the_collector(rank, world_size, argv, failing):
    """Of a run whose step number `failing` fails: its error; (automatic collection is on, collections by hand so far)
    as each step begins; whether automatic collection is on after the run."""
    from megatron_alum.training import loop

    seen, step, spy = [], loop.train_step, Mock(wraps=gc)

    def watched(*args, **options):
        seen.append((gc.isenabled(), spy.collect.call_count))
        if len(seen) == failing:
            raise ValueError("a step that fails")
        return step(*args, **options)

    try:
        with patch.object(loop, "gc", spy), patch.object(loop, "train_step", watched):
            return train_quietly(rank, world_size, argv), seen, gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("interval", "failing", "collections"),
    [(2, None, [0, 0, 1, 1, 2]), (2, 4, [0, 0, 1, 1]), (0, None, [0] * 5)],
    ids=["every second iteration", "until a step fails", "left to Python"],
)
def test_garbage_is_collected_at_the_interval_alone(prefix, tmp_path, interval, failing, collections):
    """Python collects by itself again after the run, whichever way it ended."""
    argv = arguments(prefix, tmp_path / "run", manual_gc_interval=interval, train_iters=5, num_layers=1)
    ((error, seen, afterwards),) = run_ranks(1, train_watching_the_collector, argv, failing)
    assert str(error) == ("a step that fails" if failing else "None")
    assert seen == [(interval == 0, number) for number in collections]
    assert afterwards


def test_a_trace_holds_the_iterations_asked_for(prefix, tmp_path):
    run = tmp_path / "run"
    launch(1, prefix, run, train_iters=4, profile_step_start=2, profile_step_end=3, num_layers=1)
    (trace,) = (run / "profile").iterdir()
    assert trace.name == "iterations_2-3.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum("AdamW" in event.get("name", "") for event in events) == 2


def test_gradients_in_bfloat16_stay_near(prefix, tmp_path):
    options = {**EXACT, "bf16": True, "train_iters": 6}
    expected = launch(1, prefix, tmp_path / "float32", **options)
    rows = launch(2, prefix, tmp_path / "bfloat16", **options, grad_reduce_in_bf16=True, use_distributed_optimizer=True)
    worst = largest_difference(rows, expected, ("lm_loss", "grad_norm"))
    assert 0 < worst["lm_loss"] < 0.02 and worst["grad_norm"] < 0.05, worst


def train_with_a_slow_rank(rank, world_size, argv):
    """A run of four ranks, of which the third takes 50 ms more for each micro-batch."""
    from megatron_alum.objective.losses import Objective

    standard = Objective.standard

    def slow(self, *args):
        if rank == 2:
            time.sleep(0.05)
        return standard(self, *args)

    with patch.object(Objective, "standard", slow):
        return train_quietly(rank, world_size, argv)


def test_the_slowest_rank_is_named(prefix, tmp_path):
    """Not the others, which wait for it when they reduce the gradients."""
    run = tmp_path / "run"
    argv = arguments(prefix, run, train_iters=8, log_interval=4, alum_alpha=0, num_layers=1)
    assert run_ranks(4, train_with_a_slow_rank, argv) == [None] * 4
    last = read_rows(run, "performance.jsonl")[-1]
    assert last["slowest_rank"] == 2 and last["slowest_excess"] > 0.3, last
