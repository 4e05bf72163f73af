"""The reference operations against cases worked out by hand and against textbook formulas."""

import math

import pytest
import torch

from megatron_alum.alum import reference_divergence, reference_perturb

STEP = {"step_size": 0.5, "epsilon": 0.3, "mask": None, "out_dtype": torch.float32}


def test_clamp_step_by_hand():
    """delta + eta g = (0.1 + 0.1, -0.2 - 0.5, 0.25 + 0.05) = (0.2, -0.7, 0.3), clamped to +-0.3."""
    x, delta, grad = torch.ones(1, 1, 3), torch.tensor([[[0.1, -0.2, 0.25]]]), torch.tensor([[[0.2, -1.0, 0.1]]])
    x_adv, moved, stats = reference_perturb(x, delta, grad, projection="clamp", **STEP)
    torch.testing.assert_close(moved, torch.tensor([[[0.2, -0.3, 0.3]]]))
    torch.testing.assert_close(x_adv, torch.tensor([[[1.2, 0.7, 1.3]]]))
    assert stats["ascent_ratio"].item() == pytest.approx(math.hypot(0.1, 0.5, 0.05) / math.hypot(0.1, 0.2, 0.25))
    assert stats["effective_perturbation"].item() == pytest.approx(1.0, rel=1e-5)


def test_normalized_gradient_step_by_hand():
    """g / max|g| = (0.2, -1, 0.1); delta + 0.5 of it = (0.2, -0.7, 0.3), clamped; a token of zeros does not move."""
    grad = torch.tensor([[[2e-9, -1e-8, 1e-9], [0.0, 0.0, 0.0]]])
    delta = torch.tensor([[[0.1, -0.2, 0.25], [0.1, 0.0, 0.0]]])
    _, moved, _ = reference_perturb(torch.ones(1, 2, 3), delta, grad, projection="normalized_gradient", **STEP)
    torch.testing.assert_close(moved, torch.tensor([[[0.2, -0.3, 0.3], [0.1, 0.0, 0.0]]]))


def test_normalize_step_by_hand():
    """delta + eta g = (0.2, -0.7, 0.3), over 0.7 + 1e-6."""
    delta, grad = torch.tensor([[[0.1, -0.2, 0.25]]]), torch.tensor([[[0.2, -1.0, 0.1]]])
    _, moved, _ = reference_perturb(torch.ones(1, 1, 3), delta, grad, projection="normalize", **STEP)
    torch.testing.assert_close(moved, torch.tensor([[[0.2, -0.7, 0.3]]]) / 0.700001)


def test_start_is_not_projected_and_masked_positions_stay_zero_even_for_nan():
    delta = torch.tensor([[[5.0, -5.0], [1.0, 1.0]]])
    grad = torch.tensor([[[0.0, 0.0], [float("nan"), 1.0]]])
    mask = torch.tensor([[True, False]])
    options = {**STEP, "mask": mask}
    _, start, _ = reference_perturb(torch.zeros(1, 2, 2), delta, None, projection="clamp", **options)
    torch.testing.assert_close(start, torch.tensor([[[5.0, -5.0], [0.0, 0.0]]]))
    _, moved, _ = reference_perturb(torch.zeros(1, 2, 2), delta, grad, projection="clamp", **options)
    torch.testing.assert_close(moved, torch.tensor([[[0.3, -0.3], [0.0, 0.0]]]))


def test_effective_perturbation_shows_what_bfloat16_swallows():
    """bf16 has 8 bits: 1 + 1e-5 is 1, while 1e-3 + 1e-5 moves to a neighbour about 7.6e-6 away."""
    delta = torch.full((1, 1, 64), 1e-5)
    options = {**STEP, "out_dtype": torch.bfloat16, "projection": "clamp"}
    assert reference_perturb(torch.ones(1, 1, 64), delta, None, **options)[2]["effective_perturbation"] == 0
    small = reference_perturb(torch.full((1, 1, 64), 1e-3), delta, None, **options)[2]["effective_perturbation"]
    assert 0.5 < small.item() < 1.5


def test_unknown_projection_is_refused():
    x = torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="projection"):
        reference_perturb(x, x, x, projection="l2", **STEP)


def test_divergence_by_hand():
    """P = (1/2, 1/2), Q = (1/4, 3/4); both directions written out from the definition."""
    clean, adversarial = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3.0)]])
    forward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    backward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    one_way = reference_divergence(clean, adversarial, symmetric=False, detach_targets=True)
    both = reference_divergence(clean, adversarial, symmetric=True, detach_targets=True)
    assert one_way.item() == pytest.approx(forward, rel=1e-6)
    assert both.item() == pytest.approx(forward + backward, rel=1e-6)


def test_divergence_keeps_its_digits_where_alum_works():
    """Float32 logits 1e-6 apart: sum (p - q)(a - b) in float64; the same formulas in float32 are off by half."""
    torch.manual_seed(0)
    clean = torch.randn(4, 100)
    adversarial = clean + 1e-6 * torch.randn(4, 100)
    a, b = clean.double(), adversarial.double()
    expected = ((a.softmax(-1) - b.softmax(-1)) * (a - b)).sum(-1).mean()
    actual = reference_divergence(clean, adversarial, symmetric=True, detach_targets=True)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_detached_gradients_are_p_minus_q():
    torch.manual_seed(0)
    a, b = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    reference_divergence(a, b, symmetric=True, detach_targets=True).backward()
    difference = (a.softmax(-1) - b.softmax(-1)).detach() / 3
    torch.testing.assert_close(a.grad, difference)
    torch.testing.assert_close(b.grad, -difference)


def test_outputs_may_be_tuples_mappings_and_empty():
    a, b, c, d = (torch.randn(2, 3) for _ in range(4))
    options = {"symmetric": True, "detach_targets": True}
    expected = reference_divergence(a, b, **options) + reference_divergence(c, d, **options)
    torch.testing.assert_close(reference_divergence((a, c, None), (b, d, None), **options), expected)
    torch.testing.assert_close(reference_divergence({"s": a, "e": c}, {"s": b, "e": d}, **options), expected)
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = reference_divergence((a, empty), (b, empty), **options)
    torch.testing.assert_close(loss, reference_divergence(a, b, **options))
    loss.backward()
    assert empty.grad.shape == (0, 3)
