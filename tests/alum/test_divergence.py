"""The reference divergence against cases worked out by hand and textbook formulas; how its rows are reduced."""

import math

import pytest
import torch

from megatron_alum.alum import reference_divergence
from megatron_alum.alum.divergence import mean_of_rows, sum_of_samples, tensors


def test_divergence_by_hand():
    """P = (1/2, 1/2), Q = (1/4, 3/4); both directions written out from the definition."""
    clean, adversarial = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3.0)]])
    forward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    backward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    one_way = reference_divergence(clean, adversarial, symmetric=False, detach_targets=True)
    both = reference_divergence(clean, adversarial, symmetric=True, detach_targets=True)
    assert one_way.shape == both.shape == (1,)
    assert one_way.item() == pytest.approx(forward, rel=1e-6)
    assert both.item() == pytest.approx(forward + backward, rel=1e-6)


def test_divergence_keeps_its_digits_where_alum_works():
    """Float32 logits 1e-6 apart: sum (p - q)(a - b) in float64; the same formulas in float32 are off by half."""
    torch.manual_seed(0)
    clean = torch.randn(4, 100)
    adversarial = clean + 1e-6 * torch.randn(4, 100)
    a, b = clean.double(), adversarial.double()
    expected = ((a.softmax(-1) - b.softmax(-1)) * (a - b)).sum(-1)
    actual = reference_divergence(clean, adversarial, symmetric=True, detach_targets=True)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)


def test_detached_gradients_are_p_minus_q():
    torch.manual_seed(0)
    a, b = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    reference_divergence(a, b, symmetric=True, detach_targets=True).mean().backward()
    difference = (a.softmax(-1) - b.softmax(-1)).detach() / 3
    torch.testing.assert_close(a.grad, difference)
    torch.testing.assert_close(b.grad, -difference)


def test_outputs_may_be_tensors_tuples_and_mappings():
    a, b = torch.zeros(2, 3), torch.zeros(4, 3)
    for outputs, expected in ((a, [a]), ((a, None, b), [a, b]), ({"start": a, "end": b}, [a, b])):
        assert all(x is y for x, y in zip(tensors(outputs), expected, strict=True))


ROWS, OWNER = torch.tensor([1.0, 2.0, 6.0, 10.0, 100.0]), torch.tensor([0, 0, 0, 2, 3])  # the last row: no sample


def test_reductions_by_hand():
    """Means of the samples: (1 + 2 + 6) / 3 = 3, nothing, 10. Mean of the rows: 19 / 4."""
    assert sum_of_samples(ROWS, OWNER, 3) == 13
    assert mean_of_rows(ROWS, OWNER, 3) == 19 / 4
    assert mean_of_rows(ROWS, OWNER, 3, finite=torch.tensor([False, True, True])) == 10 / 4


@pytest.mark.parametrize("reduce", [sum_of_samples, mean_of_rows])
def test_rows_of_no_sample_add_nothing_not_even_a_nan(reduce):
    rows = torch.where(OWNER == 3, float("nan"), ROWS).requires_grad_(True)
    loss = reduce(rows, OWNER, 3)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(rows.grad).all() and rows.grad[-1] == 0
    assert reduce(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 3) == 0
