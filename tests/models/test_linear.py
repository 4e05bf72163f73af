"""The products of the linear layers against float64, and against megatron-core's own way on a group of one."""

import pytest
import torch
from torch.nn import functional as F

from megatron_alum.models.cpu import linear

# Sums of 48 products of size 1 in float32 (2^-24 each), in any order.
ATOL = 48 * 2**-24


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("leading", [(5,), (3, 4), (2, 3, 4), (0,)])
def test_value_and_gradients_against_float64(leading):
    x, weight, bias = leaves((*leading, 48), (7, 48), (7,))
    weights_of_output = torch.arange(7.0) + 1.0
    (linear(x, weight, bias) * weights_of_output).sum().backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, weight, bias)]
    expected = F.linear(*exact)
    (expected * weights_of_output.double()).sum().backward()
    torch.testing.assert_close(linear(x, weight, bias).double(), expected, rtol=1e-5, atol=ATOL)
    for leaf, oracle in zip((x, weight, bias), exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), oracle.grad, rtol=1e-5, atol=28 * ATOL)


def test_strided_input_and_gradient():
    x, weight, bias = leaves((4, 48, 3), (7, 48), (7,))
    outcome = linear(x.transpose(1, 2), weight, bias)
    torch.testing.assert_close(outcome, F.linear(x.transpose(1, 2), weight, bias), rtol=1e-5, atol=ATOL)
    (grad,) = torch.autograd.grad(outcome.transpose(0, 2).sum(), x)
    torch.testing.assert_close(grad, weight.sum(0)[None, :, None].expand_as(x), rtol=1e-5, atol=ATOL)


def test_a_frozen_weight_gets_no_gradient():
    x, weight, bias = leaves((5, 48), (7, 48), (7,))
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert weight.grad is None and bias.grad is None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, -1), rtol=1e-5, atol=ATOL)


def test_16_bit_numbers_take_torchs_own_product():
    x, weight, bias = leaves((5, 48), (7, 48), (7,), dtype=torch.bfloat16)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
