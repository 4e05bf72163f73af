"""One ascent step: hand-worked tokens, bit equality of the implementations, masks, statistics, gradients, a toy
ascent."""

import pytest
import torch

from megatron_alum import ops
from tests.ops import tolerances

PROJECTIONS = ["clamp", "normalize", "normalized_gradient"]
S, B, H = 6, 3, 70


def tensors(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [(scale * torch.randn(S, B, H, generator=generator)).to(device, dtype) for scale in (1.0, 1e-3, 1.0)]


def key(device, tokens=S * B):
    """Of the tokens of an [S, B, H] tensor, or of the first of them."""
    samples, positions = (torch.arange(B) + 10).repeat(S), torch.arange(S).repeat_interleave(B)
    return ops.NoiseKey(3, 4, samples[:tokens].to(device), positions[:tokens].to(device), 1e-3)


def perturbed(*arguments, **options):
    """`perturb_embeddings` with the statistics of its sums."""
    x_adv, moved, sums = ops.perturb_embeddings(*arguments, **options)
    return x_adv, moved, ops.perturbation_statistics(sums)


@pytest.mark.parametrize(
    ("projection", "expected"),
    [  # delta = (0.1, -0.2, 0), g = (1, 2, -4), step 0.1: delta + 0.1 g = (0.2, 0, -0.4)
        ("clamp", [0.15, 0.0, -0.15]),
        ("normalize", [0.5, 0.0, -1.0]),
        ("normalized_gradient", [0.125, -0.15, -0.1]),  # g / 4 = (0.25, 0.5, -1): (0.125, -0.15, -0.1)
    ],
)
def test_one_token_by_hand(device, impl, projection, expected):
    delta = torch.tensor([[0.1, -0.2, 0.0]], device=device)
    grad = torch.tensor([[1.0, 2.0, -4.0]], device=device)
    moved = ops.ascend_and_project(delta, grad, step_size=0.1, epsilon=0.15, projection=projection, impl=impl)
    assert moved[0].tolist() == pytest.approx(expected, abs=1e-5)  # 1e-6 in the released code's denominator


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bit_equal_to_the_reference(device, impl, projection, dtype):
    x, delta, grad = tensors(device, dtype)
    mask = torch.rand(S, B, device=device) < 0.7
    options = {"step_size": 1e-3, "epsilon": 1e-3, "projection": projection}
    moved = ops.ascend_and_project(delta, grad, impl=impl, **options)
    assert torch.equal(moved, ops.ascend_and_project(delta, grad, impl="reference", **options))
    for out_dtype in (torch.float32, torch.bfloat16, torch.float16):
        for start in (delta, key(device)):
            for g in (grad, None):
                call = {"mask": mask, "out_dtype": out_dtype, **options}
                found = perturbed(x, start, g, impl=impl, **call)
                expected = perturbed(x, start, g, impl="reference", **call)
                assert found[0].dtype == out_dtype and torch.equal(found[0], expected[0])
                assert found[1].dtype == torch.float32 and torch.equal(found[1], expected[1])
                for mine, theirs in zip(found[2], expected[2], strict=True):
                    assert mine.item() == pytest.approx(theirs.item(), rel=tolerances.STATISTICS)


@pytest.mark.parametrize("layout", ["transposed", "every other token", "every other channel"])
def test_non_contiguous_tensors(device, impl, layout):
    def strided(t):
        if layout == "transposed":
            return t.transpose(0, 1).contiguous().transpose(0, 1)
        if layout == "every other token":
            return t.repeat_interleave(2, dim=0)[::2]
        return t.repeat_interleave(2, dim=2)[..., ::2]

    tokens, options = tensors(device), {"step_size": 1e-3, "epsilon": 1e-3, "impl": impl}
    mask = torch.rand(S, B, device=device) < 0.7
    wide_mask = mask.repeat_interleave(2, dim=1)[:, ::2]
    expected = ops.perturb_embeddings(*tokens, mask=mask, **options)
    found = ops.perturb_embeddings(*map(strided, tokens), mask=wide_mask, **options)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    moved = ops.ascend_and_project(*map(strided, tokens[1:]), **options)
    assert torch.equal(moved, ops.ascend_and_project(*tokens[1:], **options))


@pytest.mark.parametrize("shape", [(0, B, H), (S, 0, H)], ids=str)
def test_no_tokens(device, impl, shape):
    x, delta, grad = (torch.zeros(shape, device=device) for _ in range(3))
    x_adv, moved, stats = perturbed(x, delta, grad, step_size=1e-3, epsilon=1e-3, impl=impl)
    assert x_adv.shape == moved.shape == shape and stats.nonfinite_tokens == 0 and stats.delta_norm == 0
    assert ops.ascend_and_project(delta, grad, step_size=1e-3, epsilon=1e-3, impl=impl).shape == shape


@pytest.mark.parametrize("shape", [(S * B, H), (S * B, 1, H), (S, B, H), (3, 2, B, H)], ids=str)
def test_noise_inside_the_kernel_is_gaussian_noise(device, impl, shape):
    """Token by token in row-major order, whatever the leading dimensions are."""
    noise_key = key(device)
    _, delta, _ = ops.perturb_embeddings(
        torch.zeros(shape, device=device), noise_key, step_size=0.0, epsilon=1.0, impl=impl
    )
    where = {"std": 1e-3, "key": (3, 4), "impl": "reference"}
    expected = ops.gaussian_noise(noise_key.sample_index, noise_key.position, H, **where)
    assert delta.shape == shape and torch.equal(delta.view(-1, H), expected)


def test_sums_of_parts_add_up_before_ratios_are_formed(device, impl):
    x, delta, grad = tensors(device)
    call = {"step_size": 1e-3, "epsilon": 2e-3, "impl": impl}
    whole = ops.perturb_embeddings(x, delta, grad, **call)[2]
    parts = [ops.perturb_embeddings(x[p], delta[p], grad[p], **call)[2] for p in (slice(2), slice(2, S))]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=tolerances.STATISTICS, atol=0)
    assert whole.shape == (6,) and whole.dtype == torch.float32 and not whole.requires_grad


def test_tokens_outside_the_mask_stay_as_they_are(device, impl):
    x, delta, grad = tensors(device)
    mask = torch.zeros(S, B, dtype=torch.bool, device=device)
    mask[1, 2] = True
    call = {"step_size": 1.0, "epsilon": 1.0, "mask": mask, "impl": impl}
    x_adv, moved, stats = perturbed(x, delta, grad, **call)
    assert torch.equal(x_adv[~mask], x[~mask]) and not moved[~mask].any() and moved[mask].any()
    assert stats.delta_norm.item() == pytest.approx(moved.norm().item(), rel=tolerances.STATISTICS)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_statistics_by_their_definitions(device, impl, projection):
    x, delta, grad = tensors(device, torch.bfloat16)
    call = {"step_size": 1e-3, "epsilon": 2e-3, "projection": projection, "out_dtype": torch.bfloat16, "impl": impl}
    x_adv, moved, stats = perturbed(x, delta, grad, **call)
    seen = (x_adv.float() - x.float()).abs().sum() / moved.abs().sum()
    assert stats.effective_perturbation.item() == pytest.approx(seen.item(), rel=tolerances.STATISTICS)
    step = 1e-3 * grad.float()
    if projection == "normalized_gradient":
        step /= grad.float().abs().amax(-1, keepdim=True)
    ratio = step.norm() / delta.float().norm()
    assert stats.ascent_ratio.item() == pytest.approx(ratio.item(), rel=tolerances.STATISTICS)
    assert all(stat.ndim == 0 and stat.dtype == torch.float32 for stat in stats)


def test_bfloat16_swallows_the_papers_epsilon(device, impl):
    """|x| of 1 in bfloat16 keeps nothing of 1e-5: the statistic that the run must warn about."""
    x, delta = torch.ones(2, 2, 64, device=device), torch.full((2, 2, 64), 1e-5, device=device)
    call = {"step_size": 0.0, "epsilon": 1e-5, "impl": impl}
    assert perturbed(x, delta, out_dtype=torch.bfloat16, **call)[2].effective_perturbation == 0
    kept = perturbed(x, delta, **call)[2].effective_perturbation
    assert kept.item() == pytest.approx(1.0, abs=0.01)  # float32 near 1 holds 1e-5 to half a unit of 1.2e-7


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_token_with_a_bad_gradient_keeps_its_delta(device, impl, projection, bad):
    x, delta, grad = tensors(device)
    grad[2, 1, 33] = bad
    call = {"step_size": 1.0, "epsilon": 1.0, "projection": projection, "impl": impl}
    x_adv, moved, stats = perturbed(x, delta, grad, **call)
    assert torch.equal(moved[2, 1], delta[2, 1]) and torch.isfinite(x_adv).all() and stats.nonfinite_tokens == 1
    grad[2, 1, 33] = 0.0
    good = perturbed(x, delta, grad, **call)[1]
    others = torch.ones(S, B, dtype=torch.bool, device=device)
    others[2, 1] = False
    assert torch.equal(moved[others], good[others]) and not torch.equal(moved[2, 1], good[2, 1])


def test_a_zero_gradient_and_a_zero_delta_stay_finite(device, impl):
    zero = torch.zeros(2, 2, 8, device=device)
    for projection in PROJECTIONS:
        moved = ops.ascend_and_project(zero, zero, step_size=1.0, epsilon=1.0, projection=projection, impl=impl)
        assert not moved.any()


def test_gradient_flows_only_to_x(device, impl):
    x, delta, grad = (t.requires_grad_() for t in tensors(device))
    x_adv, moved, _ = ops.perturb_embeddings(
        x, delta, grad, step_size=1e-3, epsilon=1e-3, out_dtype=torch.bfloat16, impl=impl
    )
    weight = torch.randn(S, B, H, device=device).bfloat16()
    (x_adv * weight).sum().backward()
    assert torch.equal(x.grad, weight.float()) and delta.grad is None and grad.grad is None
    assert not moved.requires_grad


def test_the_step_climbs(device, impl):
    """On a linear classifier the divergence grows with every step; a flipped sign of the step or the gradient shrinks
    it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, H, generator=generator).to(device)
    x = torch.randn(S * B, H, generator=generator).to(device)
    delta = 0.01 * torch.randn(S * B, H, generator=generator).to(device)
    values = []
    for _ in range(4):
        start = delta.requires_grad_()
        kl = ops.kl_divergence((x @ weight.T).detach(), (x + start) @ weight.T, impl=impl).mean()
        values.append(kl.item())
        grad = torch.autograd.grad(kl, start)[0]
        call = {"step_size": 0.02, "epsilon": 0.1, "projection": "normalized_gradient", "impl": impl}
        delta = ops.ascend_and_project(start.detach(), grad, **call)
    assert values == sorted(values) and values[-1] > 4 * values[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"projection": "sphere"},
            "`projection` must be one of clamp, normalize, normalized_gradient, but is 'sphere'",
        ),
        ({"epsilon": -1.0}, "`epsilon` must be >= 0, but is -1.0"),
        ({"step_size": float("nan")}, "`step_size` must be finite, but is nan"),
        ({"out_dtype": torch.int32}, "`out_dtype` must be floating point, but is torch.int32"),
        ({"grad": torch.zeros(S, B, H, dtype=torch.int32)}, "`grad` must be floating point, but is torch.int32"),
        ({"mask": torch.ones(S, B)}, "`mask` must be bool of shape"),
        ({"delta": torch.zeros(S, B, 2)}, "`delta` must be"),
        ({"delta": key("cpu", tokens=S)}, "`x` must hold 6 tokens to fit the NoiseKey"),
    ],
)
def test_wrong_arguments_are_refused(impl, device, change, message):
    x, delta, grad = tensors(device)
    change = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    call = {"x": x, "delta": delta, "grad": grad, "step_size": 1.0, "epsilon": 1.0, "impl": impl, **change}
    with pytest.raises(ValueError, match=message):
        ops.perturb_embeddings(**call)
