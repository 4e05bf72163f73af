"""Gradients added to the gradient buffer where they are computed, against those from autograd."""

import pytest
import torch
from torch.nn import functional as F

from megatron_alum.alum import frozen
from megatron_alum.config.cli import build_config
from megatron_alum.config.run import RunConfig
from megatron_alum.models import build_model
from megatron_alum.models.cpu import gradient_buffer, linear, lookup
from megatron_alum.training.optimizer import wrap_data_parallel
from tests.helpers.distributed import run_ranks
from tests.models.test_linear import ATOL, leaves

BEFORE = 3.0  # what the buffer already holds, from another micro-batch


def buffered(parameter: torch.Tensor) -> torch.Tensor:
    """`parameter` as the wrapper prepares it."""
    parameter.main_grad = torch.full(parameter.shape, BEFORE)
    parameter.accumulates_in_place = True
    return parameter


def test_the_gradient_of_a_product_is_added_to_the_buffer():
    x, weight, bias = leaves((5, 48), (7, 48), (7,))
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, weight, bias)]
    buffered(weight)
    for _ in range(2):  # two users, as the decoder has in an adversarial step
        linear(x, weight, bias).square().sum().backward()
    F.linear(*exact).square().sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad.double(), BEFORE + 2 * exact[1].grad, rtol=1e-5, atol=28 * ATOL)
    torch.testing.assert_close(bias.grad.double(), 2 * exact[2].grad, rtol=1e-5, atol=28 * ATOL)
    torch.testing.assert_close(x.grad.double(), 2 * exact[0].grad, rtol=1e-5, atol=28 * ATOL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_lookup_is_added_to_the_buffer(dtype):
    (table,) = leaves((6, 4), dtype=dtype)
    buffered(table)
    ids = torch.tensor([[1, 4, 1], [0, 1, 5]])
    rows = lookup(ids, table)
    assert torch.equal(rows, table[ids])
    rows.backward(torch.arange(24.0).view(2, 3, 4).to(dtype))
    # By hand: row 1 is read at positions 0, 2 and 4, whose gradients begin with 0, 8 and 16; rows 2 and 3 never.
    first_column = torch.tensor([12.0, 0.0 + 8.0 + 16.0, 0.0, 0.0, 4.0, 20.0]) + BEFORE
    assert table.grad is None and torch.equal(table.main_grad[:, 0], first_column)


def test_frozen_weights_are_left_alone():
    """The ascent differentiates only with respect to the perturbation, through the same weights."""
    x, weight, bias = leaves((5, 48), (7, 48), (7,))
    (table,) = leaves((6, 48))
    buffered(weight), buffered(table)
    with frozen([weight, bias, table]):
        hidden = x + lookup(torch.arange(5), table)
        torch.autograd.grad(linear(hidden, weight, bias).sum(), x)
    assert torch.equal(weight.main_grad, torch.full((7, 48), BEFORE))
    assert torch.equal(table.main_grad, torch.full((6, 48), BEFORE))


def _buffers(rank: int, world_size: int, options: dict) -> tuple[int, int]:
    """(parameters, those whose gradients go straight into their buffers) of a wrapped model."""
    from megatron_alum.parallel import initialize

    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    values = {"data_path": ("none",), "dry_run": True, "model_size": "tiny", "seq_length": 16, "train_iters": 4}
    config = build_config(RunConfig, [{**values, "micro_batch_size": 2, "global_batch_size": 2, **options}])
    model = wrap_data_parallel(build_model(config.model, vocab_size=100, groups=groups), config)
    found = [gradient_buffer(parameter, torch.float32) for parameter in model.parameters()]
    return len(found), sum(buffer is not None for buffer in found)


@pytest.mark.parametrize("overlap", [False, True])
def test_overlapped_reduction_sees_every_gradient(overlap):
    ((parameters, in_place),) = run_ranks(1, _buffers, {"overlap_grad_reduce": overlap})
    assert parameters > 0 and in_place == (0 if overlap else parameters)
