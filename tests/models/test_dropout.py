"""The CPU dropout: its probability, its scale, and that backward uses the mask of forward."""

import pytest
import torch

from megatron_alum.models.dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 1e-4, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_share_scale_and_gradient(probability, dtype):
    torch.manual_seed(3)
    x = torch.ones(1000, 999, dtype=dtype, requires_grad=True)  # not a multiple of the four elements a draw serves
    y = dropout(x, probability, training=True)
    dropped = (y == 0).double().mean().item()
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert abs(dropped - probability) < 4 * deviation + 2**-17
    kept = y[y != 0].double()
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=2**-7 if dtype == torch.bfloat16 else 1e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_neighbours_are_independent():
    torch.manual_seed(4)
    zero = (dropout(torch.ones(400_000), 0.5, training=True) == 0).double() * 2 - 1
    for lag in range(1, 9):
        assert abs((zero[lag:] * zero[:-lag]).mean().item()) < 4 / 400_000**0.5


def test_same_generator_state_gives_the_same_mask():
    torch.manual_seed(5)
    first, second = (dropout(torch.ones(100), 0.5, training=True) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(dropout(torch.ones(100), 0.5, training=True), first)
    assert not torch.equal(first, second)


def test_off_returns_the_tensor_itself():
    x = torch.ones(3)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
