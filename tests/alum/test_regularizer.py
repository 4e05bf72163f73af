"""Algorithm 1 on models whose gradients are known by hand, and one named test for each way it silently goes wrong.

The sign, the KL's direction, the freeze and the pads are checked by a function each; every check is also run on a
mutant with exactly that mistake and must fail there, so that no test can go blind.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_alum.alum import AlumConfig, AlumRegularizer, adversarial_count, frozen, reference_kernels
from tests.alum.toy import BIG, EXACT, B, H, S, TokenModel, inputs


def kl(clean, adversarial):
    """Mean over rows of KL(clean || adversarial) by its definition."""
    p, q = clean.softmax(-1), adversarial.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def with_perturb(change):
    """Reference kernels whose perturb sees arguments altered by `change(delta, grad, mask)`."""
    base = reference_kernels()

    def perturb(x, delta, grad, **options):
        delta, grad, options["mask"] = change(delta, grad, options["mask"])
        return base.perturb(x, delta, grad, **options)

    return dataclasses.replace(base, perturb=perturb)


FLIPPED_SIGN = with_perturb(lambda delta, grad, mask: (delta, None if grad is None else -grad, mask))
PADS_PERTURBED = with_perturb(lambda delta, grad, mask: (delta, grad, None))
SWAPPED_KL = dataclasses.replace(
    reference_kernels(), divergence=lambda a, b, **options: reference_kernels().divergence(b, a, **options)
)


def check_linear_step(model, kernels=None):
    """One step on a linear model: g = W^T (q - p) / rows, delta' = clamp(delta + eta g)."""
    x, start, _ = inputs()
    config = AlumConfig(epsilon=0.15, step_size=3.0)
    ascent = AlumRegularizer(config, kernels).ascend(x, model(x), model, noise_key=start)
    p, q = model(x).softmax(-1), model(x + start).softmax(-1)
    g = (q - p) @ model.head.weight / (B * S)
    torch.testing.assert_close(ascent.delta, (start + 3.0 * g).clamp(-0.15, 0.15).detach(), **EXACT)
    torch.testing.assert_close(ascent.stats["inner_kl_start"], kl(model(x), model(x + start)).detach(), **EXACT)
    expected_ratio = (3.0 * g).norm() / start.norm()
    torch.testing.assert_close(ascent.stats["ascent_ratio"], expected_ratio.detach(), **EXACT)


def check_kl_rises(num_ascent_steps, kernels=None, projection="normalized_gradient"):
    """KL(delta_K) > KL(delta_0) on a two-layer network, for a start inside the ball."""
    torch.manual_seed(3)
    model = TokenModel(depth=2).double()
    x, start, mask = inputs()
    start = start.clamp(-0.1, 0.1)
    changes = {**BIG, "projection": projection, "step_size": 500.0 if projection == "clamp" else 0.05}
    config = AlumConfig(num_ascent_steps=num_ascent_steps, **changes)
    out = AlumRegularizer(config, kernels)(x, model(x), model, noise_key=start, mask=mask)
    masked_start = torch.where(mask.unsqueeze(-1), start, 0.0)
    before, after = kl(model(x), model(x + masked_start)), kl(model(x), model(x + out.delta))
    assert after > 1.2 * before, f"KL went from {before} to {after}"
    torch.testing.assert_close(out.stats["kl_gain"], (after - before).detach(), **EXACT)


def check_pads_untouched(model, kernels=None):
    x, start, mask = inputs()
    out = AlumRegularizer(AlumConfig(**BIG), kernels)(x, model(x), model, noise_key=start, mask=mask)
    assert out.delta[~mask].abs().max() == 0, "a pad was perturbed"
    assert (out.delta[mask] != 0).all()


def test_linear_step_equals_the_gradient_worked_out_by_hand(model):
    check_linear_step(model)


def test_swapped_kl_arguments_are_noticed(model):
    with pytest.raises(AssertionError):
        check_linear_step(model, SWAPPED_KL)


@pytest.mark.parametrize("projection", ["clamp", "normalized_gradient"])
@pytest.mark.parametrize("num_ascent_steps", [1, 2, 3])
def test_kl_rises_over_the_random_start(num_ascent_steps, projection):
    check_kl_rises(num_ascent_steps, projection=projection)


@pytest.mark.parametrize("num_ascent_steps", [1, 2, 3])
def test_flipped_sign_is_noticed(num_ascent_steps):
    with pytest.raises(AssertionError, match="KL went"):
        check_kl_rises(num_ascent_steps, FLIPPED_SIGN)


def test_more_steps_climb_higher():
    gains = []
    for steps in (1, 2, 4):
        torch.manual_seed(3)
        model = TokenModel(depth=2).double()
        x, start, mask = inputs()
        config = AlumConfig(**{**BIG, "step_size": 0.02, "num_ascent_steps": steps})
        out = AlumRegularizer(config)(x, model(x), model, noise_key=start.clamp(-0.1, 0.1), mask=mask)
        gains.append(out.stats["kl_gain"].item())
    assert 0 < gains[0] < gains[1] < gains[2]


def test_pads_are_never_perturbed(model):
    check_pads_untouched(model)


def test_perturbed_pads_are_noticed(model):
    with pytest.raises(AssertionError, match="pad"):
        check_pads_untouched(model, PADS_PERTURBED)


@pytest.mark.parametrize("plain_backward", [False, True])
def test_parameters_are_frozen_in_the_ascent_and_restored(model, plain_backward):
    x, start, _ = inputs()
    x.requires_grad_(True)
    model.head.bias.requires_grad_(False)
    seen = []

    def forward(embeddings):
        seen.append([parameter.requires_grad for parameter in model.parameters()])
        return model(embeddings)

    regularizer = AlumRegularizer(AlumConfig(num_ascent_steps=2), plain_backward=plain_backward)
    regularizer.ascend(x, model(x), forward, noise_key=start, parameters=model.parameters())
    assert seen == [[False, False]] * 2
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert x.grad is None and all(parameter.grad is None for parameter in model.parameters())


def test_missing_freeze_is_noticed(model):
    """Without `parameters` the plain backward writes weight gradients: what the freeze is there to prevent."""
    x, start, _ = inputs()
    AlumRegularizer(AlumConfig(), plain_backward=True).ascend(x, model(x), model, noise_key=start)
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().max() > 0


def test_frozen_restores_after_an_error(model):
    with pytest.raises(RuntimeError), frozen(model.parameters()):
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_plain_backward_and_reentrant_recompute_give_the_same_delta():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(4)
    model = TokenModel(depth=3).double()
    x, start, mask = inputs()

    def recomputed(embeddings):
        return checkpoint(model, embeddings, use_reentrant=True)

    call = {"mask": mask, "noise_key": start, "parameters": list(model.parameters())}
    config = AlumConfig(**BIG, num_ascent_steps=2)
    expected = AlumRegularizer(config).ascend(x, model(x), model, **call)
    actual = AlumRegularizer(config, plain_backward=True).ascend(x, model(x), recomputed, **call)
    torch.testing.assert_close(actual.delta, expected.delta, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="checkpoint"):
        AlumRegularizer(config).ascend(x, model(x), recomputed, **call)


def test_gradient_scale_cancels(model):
    x, start, mask = inputs()
    config = AlumConfig(epsilon=0.2, step_size=1.0)
    plain = AlumRegularizer(config).ascend(x, model(x), model, noise_key=start, mask=mask)
    scaled = AlumRegularizer(config, gradient_scale=2.0**16).ascend(x, model(x), model, noise_key=start, mask=mask)
    torch.testing.assert_close(scaled.delta, plain.delta, rtol=0, atol=0)


class PoisonedGradient(torch.autograd.Function):
    """Identity whose backward is NaN for sample 1."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[1, 0, 0] = float("nan")
        return grad


def test_nonfinite_gradient_falls_back_to_the_random_start(model):
    x, start, mask = inputs()
    config = AlumConfig(**{**BIG, "num_ascent_steps": 2})
    poisoned = lambda e: model(PoisonedGradient.apply(e))  # noqa: E731
    bad = AlumRegularizer(config).ascend(x, model(x), poisoned, noise_key=start, mask=mask)
    good = AlumRegularizer(config).ascend(x, model(x), model, noise_key=start, mask=mask)
    assert bad.finite.tolist() == [True, False, True] and bad.stats["nonfinite"] == 1
    torch.testing.assert_close(bad.delta[1], torch.where(mask.unsqueeze(-1), start, 0.0)[1], rtol=0, atol=0)
    torch.testing.assert_close(bad.delta[[0, 2]], good.delta[[0, 2]], rtol=0, atol=0)


def test_nonfinite_gradient_leaves_the_standard_loss_alone(model):
    """The divergence is 0 and its gradient exactly 0, although a NaN was met: 0 * NaN would not be."""
    x, start, _ = inputs()
    calls = []

    def forward(embeddings):
        calls.append(embeddings)
        return model(PoisonedGradient.apply(embeddings)) if len(calls) == 1 else model(embeddings)

    out = AlumRegularizer(AlumConfig(**BIG))(x, model(x), forward, noise_key=start)
    out.loss.backward()
    assert out.loss == 0 and model.head.weight.grad.abs().max() == 0


def test_ranks_agree_on_finite_flags(model):
    """Under sequence parallelism another rank may hold the bad part of a sample."""
    x, start, _ = inputs()
    other_rank = torch.tensor([True, True, False])
    kernels = dataclasses.replace(reference_kernels(), agree=lambda finite: finite & other_rank)
    ascent = AlumRegularizer(AlumConfig(**BIG), kernels).ascend(x, model(x), model, noise_key=start)
    assert ascent.finite.tolist() == [True, True, False]
    torch.testing.assert_close(ascent.delta[2], start[2], rtol=0, atol=0)


def test_sequence_first_embeddings_give_the_same_result(model):
    x, _, mask = inputs()
    config = AlumConfig(**BIG)
    key = SimpleNamespace(seed=1, iteration=2, std=0.1, batch_first=False)
    poisoned = lambda e: model(PoisonedGradient.apply(e.transpose(0, 1)).transpose(0, 1))  # noqa: E731
    ascent = AlumRegularizer(config).ascend(
        x.transpose(0, 1), model(x.transpose(0, 1)), poisoned, noise_key=key, mask=mask.T
    )
    assert ascent.finite.tolist() == [True, False, True]
    assert ascent.delta.shape == (S, B, H) and ascent.delta[2:, 1].abs().max() == 0


def test_noise_key_names_the_start(model):
    x, _, _ = inputs()
    config = AlumConfig(epsilon=10.0, step_size=0.0, noise_std=0.5)
    deltas = [
        AlumRegularizer(config)
        .ascend(x, model(x), model, noise_key=SimpleNamespace(seed=7, iteration=i, std=0.5))
        .delta
        for i in (3, 3, 4)
    ]
    torch.testing.assert_close(deltas[0], deltas[1], rtol=0, atol=0)
    assert not torch.equal(deltas[0], deltas[2])


def test_loss_gradient_equals_finite_differences(model):
    """d loss / d W with delta held fixed, targets attached, by central differences in float64."""
    x, start, mask = inputs()
    config = AlumConfig(epsilon=0.2, step_size=0.0, detach_targets=False)
    weight = model.head.weight

    def loss():
        return AlumRegularizer(config)(x, model(x), model, noise_key=start, mask=mask).loss

    (analytic,) = torch.autograd.grad(loss(), weight)
    for index in ((0, 0), (3, 2), (6, 4)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[index] += step
            values.append(loss().item())
            with torch.no_grad():
                weight[index] -= step
        assert analytic[index].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


class NoHostSync(TorchDispatchMode):
    """Refuses every operation that would make the host wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "equal"}, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(model):
    x, start, mask = inputs()
    with NoHostSync():
        AlumRegularizer(AlumConfig(num_ascent_steps=2))(x, model(x), model, noise_key=start, mask=mask).loss.backward()
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        x.sum().item()


def test_adversarial_count():
    cases = {(8, 1.0): 8, (8, 0.5): 4, (8, 0.01): 1, (7, 0.5): 4, (3, 0.34): 1}
    assert {case: adversarial_count(*case) for case in cases} == cases
