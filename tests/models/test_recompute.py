"""Recomputing activations changes no result: dropout masks are replayed, the inner pass works by `.backward()`."""

import dataclasses
import functools

import pytest

from tests.helpers.distributed import run_ranks
from tests.helpers.pairs import pairs
from tests.models.alum_step import gradients
from tests.models.batches import make_batch, small_config
from tests.models.tolerances import ORDER_RTOL


@functools.cache
def _answers(model_type, world_size, sequence_parallel, recompute, level, rows=False):
    config = dataclasses.replace(small_config(model_type), hidden_dropout=0.2, attention_dropout=0.2)
    options = {"sequence_parallel": sequence_parallel, "recompute": recompute, "level": level, "rows": rows}
    return run_ranks(world_size, gradients, config, make_batch(model_type), options)


@pytest.mark.parametrize(
    *pairs(
        layout=[(1, False), (2, False), (2, True)],
        what=[("selective", "word"), ("full", "word"), ("full", 1)],
        model_type=["megatron-bert", "roberta"],
    )
)
def test_alum_step_with_dropout_is_equal(layout, what, model_type):
    (world_size, sequence_parallel), (recompute, level) = layout, what
    rows = world_size == 1
    expected = _answers(model_type, world_size, sequence_parallel, "none", level, rows)
    actual = _answers(model_type, world_size, sequence_parallel, recompute, level, rows)
    for (whole, losses, inner_main_grad, _), (expected_whole, expected_losses, _, _) in zip(
        actual, expected, strict=True
    ):
        assert inner_main_grad == 0.0
        assert losses == expected_losses
        for name in expected_whole:
            # x is read twice by the layer above it, in two passes: a recomputed layer adds its two gradients first.
            limit = ORDER_RTOL * expected_whole[name].abs().max() if level == 1 else 0.0
            assert (whole[name] - expected_whole[name]).abs().max() <= limit, name
