"""`ascend` on models whose gradients are worked out by hand, and one named test for each way it can silently go wrong.

The sign, the KL's direction, the freeze and the pads each have a check function; every check is also run on a mutant
with exactly that mistake and must fail there, so that no check can be vacuous.
"""

import pytest
import torch

from megatron_alum.alum import AlumConfig, ascend, frozen
from megatron_alum.alum.divergence import sum_of_samples
from megatron_alum.reference.noise import NoiseKey
from megatron_alum.reference.tokens import SUMS, perturb, perturbation_statistics
from tests.alum.toy import BIG, EXACT, B, H, PoisonedGradient, S, TokenModel, inputs, kl_rows

SEGMENTS = torch.arange(B)[:, None].expand(B, S)


def flipped_sign(x, delta, grad, **options):
    return perturb(x, delta, None if grad is None else -grad, **options)


def pads_perturbed(x, delta, grad, **options):
    return perturb(x, delta, grad, **{**options, "mask": None})


def climbed(model, x, divergence=kl_rows):
    """The inner loss of a batch [B, S, H]: the sum over samples of the mean over each sample's tokens."""
    clean = model(x).detach()
    return lambda x_adv: divergence(clean, model(x_adv)).mean(-1).sum()


def run(model, x, start, config, *, inner_loss=None, **options):
    """`ascend` over the samples of a batch."""
    options = {"perturb": perturb, "segments": SEGMENTS[: len(x)], "num_segments": len(x), **options}
    return ascend(x, inner_loss or climbed(model, x), start=start, config=config, **options)


def check_linear_step(model, **options):
    """One step on a linear model: g of a sample = W^T (q - p) / its tokens, delta' = clamp(delta + eta g)."""
    x, start, _ = inputs()
    config = AlumConfig(epsilon=0.15, step_size=3.0)
    ascent = run(model, x, start, config, **options)
    p, q = model(x).softmax(-1), model(x + start).softmax(-1)
    g = (q - p) @ model.head.weight / S
    torch.testing.assert_close(ascent.delta, (start + 3.0 * g).clamp(-0.15, 0.15).detach(), **EXACT)
    by_definition = kl_rows(model(x), model(x + start)).mean(-1).sum()
    torch.testing.assert_close(ascent.inner_start, by_definition.detach(), **EXACT)
    torch.testing.assert_close(ascent.inner_last, ascent.inner_start, rtol=0, atol=0)
    ratio = perturbation_statistics(ascent.sums).ascent_ratio
    torch.testing.assert_close(ratio, ((3.0 * g).norm() / start.norm()).detach(), **EXACT)


def check_kl_rises(num_ascent_steps, used_perturb=perturb, projection="normalized_gradient"):
    """KL(delta_K) > KL(delta_0) on a two-layer network, for a start inside the ball."""
    torch.manual_seed(3)
    model = TokenModel(depth=2).double()
    x, start, mask = inputs()
    start = start.clamp(-0.1, 0.1)
    changes = {**BIG, "projection": projection, "step_size": 200.0 if projection == "clamp" else 0.05}
    config = AlumConfig(num_ascent_steps=num_ascent_steps, **changes)
    ascent = run(model, x, start, config, mask=mask, perturb=used_perturb)
    masked_start = torch.where(mask.unsqueeze(-1), start, 0.0)
    before, after = (kl_rows(model(x), model(x + delta)).mean() for delta in (masked_start, ascent.delta))
    assert after > 1.2 * before, f"KL went from {before} to {after}"


def check_pads_untouched(model, used_perturb=perturb):
    x, start, mask = inputs()
    ascent = run(model, x, start, AlumConfig(**BIG), mask=mask, perturb=used_perturb)
    assert ascent.delta[~mask].abs().max() == 0, "a pad was perturbed"
    assert (ascent.delta[mask] != 0).all()


def test_linear_step_equals_the_gradient_worked_out_by_hand(model):
    check_linear_step(model)


def test_swapped_kl_arguments_are_noticed(model):
    x, _, _ = inputs()
    with pytest.raises(AssertionError):
        check_linear_step(model, inner_loss=climbed(model, x, lambda a, b: kl_rows(b, a)))


@pytest.mark.parametrize("projection", ["clamp", "normalized_gradient"])
@pytest.mark.parametrize("num_ascent_steps", [1, 2, 3])
def test_kl_rises_over_the_random_start(num_ascent_steps, projection):
    check_kl_rises(num_ascent_steps, projection=projection)


@pytest.mark.parametrize("num_ascent_steps", [1, 2, 3])
def test_flipped_sign_is_noticed(num_ascent_steps):
    with pytest.raises(AssertionError, match="KL went"):
        check_kl_rises(num_ascent_steps, flipped_sign)


def test_pads_are_never_perturbed(model):
    check_pads_untouched(model)


def test_perturbed_pads_are_noticed(model):
    with pytest.raises(AssertionError, match="pad"):
        check_pads_untouched(model, pads_perturbed)


@pytest.mark.parametrize("num_ascent_steps", [0, 1, 2, 3])
def test_every_number_of_steps_equals_the_loop_written_out(num_ascent_steps):
    """Each sample alone, by torch.autograd on delta itself: delta_K, the losses on the way, the ratio of the step."""
    torch.manual_seed(2)
    model = TokenModel(depth=2).double()
    x, start, _ = inputs()
    config = AlumConfig(
        num_ascent_steps=num_ascent_steps, **({"epsilon": 0.2, "step_size": 2.0} if num_ascent_steps else {})
    )
    expected, losses, step_square, moved_from = start.clone(), [], 0.0, start
    for _ in range(num_ascent_steps):
        moved_from, losses, step_square = expected.clone(), [*losses, 0.0], 0.0
        for b in range(B):
            delta = expected[b].clone().requires_grad_(True)
            loss = kl_rows(model(x[b]).detach(), model(x[b] + delta)).mean()
            (g,) = torch.autograd.grad(loss, delta)
            expected[b] = (moved_from[b] + 2.0 * g).clamp(-0.2, 0.2)
            losses[-1] += loss.item()
            step_square += (2.0 * g).square().sum().item()
    calls = []
    inner = climbed(model, x)
    ascent = run(model, x, start, config, inner_loss=lambda e: (calls.append(1), inner(e))[1])
    torch.testing.assert_close(ascent.delta, expected, **EXACT)
    assert len(calls) == num_ascent_steps and ascent.finite.all() and ascent.nonfinite == 0
    assert ascent.sums.shape == (SUMS,)
    ratio = perturbation_statistics(ascent.sums).ascent_ratio.item()
    assert ratio == pytest.approx(step_square**0.5 / moved_from.norm().item(), rel=1e-12)
    if num_ascent_steps == 0:
        assert ascent.inner_start is None and ascent.inner_last is None and ratio == 0
    else:
        assert ascent.inner_start.item() == pytest.approx(losses[0], rel=1e-12)
        assert ascent.inner_last.item() == pytest.approx(losses[-1], rel=1e-12)


@pytest.mark.parametrize("plain_backward", [False, True])
def test_parameters_are_frozen_in_the_ascent_and_restored(model, plain_backward):
    x, start, _ = inputs()
    x.requires_grad_(True)
    model.head.bias.requires_grad_(False)
    inner, seen = climbed(model, x), []

    def noted(x_adv):
        seen.append([parameter.requires_grad for parameter in model.parameters()])
        return inner(x_adv)

    options = {"inner_loss": noted, "parameters": model.parameters(), "plain_backward": plain_backward}
    run(model, x, start, AlumConfig(num_ascent_steps=2), **options)
    assert seen == [[False, False]] * 2
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert x.grad is None and all(parameter.grad is None for parameter in model.parameters())


def test_missing_freeze_is_noticed(model):
    """Without `parameters` the plain backward writes weight gradients, which the freeze is meant to prevent."""
    x, start, _ = inputs()
    run(model, x, start, AlumConfig(), plain_backward=True)
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().max() > 0


def test_frozen_restores_after_an_error(model):
    with pytest.raises(RuntimeError), frozen(model.parameters()):
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_inner_loss_that_ignores_the_perturbation_is_noticed(model):
    x, start, _ = inputs()
    with pytest.raises(AssertionError, match="does not depend on x"):
        run(model, x, start, AlumConfig(), inner_loss=lambda _: model(x).sum())


def test_plain_backward_and_reentrant_recompute_give_the_same_delta():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(4)
    model = TokenModel(depth=3).double()
    x, start, mask = inputs()
    clean = model(x).detach()

    def recomputed(x_adv):
        return kl_rows(clean, checkpoint(model, x_adv, use_reentrant=True)).mean(-1).sum()

    options = {"mask": mask, "parameters": list(model.parameters())}
    config = AlumConfig(**BIG, num_ascent_steps=2)
    expected = run(model, x, start, config, **options)
    actual = run(model, x, start, config, inner_loss=recomputed, plain_backward=True, **options)
    torch.testing.assert_close(actual.delta, expected.delta, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="checkpoint"):
        run(model, x, start, config, inner_loss=recomputed, **options)


@pytest.mark.parametrize("scale", [2.0**16, torch.tensor(2.0**16)], ids=["number", "tensor"])
def test_gradient_scale_cancels(model, scale):
    x, start, mask = inputs()
    config = AlumConfig(epsilon=0.2, step_size=1.0)
    plain = run(model, x, start, config, mask=mask)
    scaled = run(model, x, start, config, mask=mask, gradient_scale=scale)
    torch.testing.assert_close(scaled.delta, plain.delta, rtol=0, atol=0)
    torch.testing.assert_close(scaled.inner_start, plain.inner_start, rtol=0, atol=0)


def test_float16_gradients_survive_by_the_scale():
    """A gradient of 1e-9 is below float16's smallest number, 6e-8; times 2^14 it is not."""
    x, start = torch.ones(1, 2, 3, dtype=torch.float16), torch.zeros(1, 2, 3)
    inner = lambda e: (e * torch.full_like(e, 2.0**-14)).sum() * 2.0**-16  # noqa: E731
    options = {"start": start, "config": AlumConfig(epsilon=1.0, step_size=1.0), "perturb": perturb}
    lost, kept = (ascend(x, inner, gradient_scale=scale, **options).delta for scale in (1.0, 2.0**14))
    assert lost.abs().max() == 0 and torch.equal(kept, torch.full((1, 2, 3), 2.0**-30))
    assert kept.dtype == torch.float32


def test_noise_key_names_the_start_by_token(model):
    x, _, _ = inputs()
    config = AlumConfig(noise_std=0.5, num_ascent_steps=0)
    sample, position = SEGMENTS.flatten() + 10, torch.arange(S).repeat(B)

    def start(iteration, tokens=slice(None)):
        return NoiseKey(7, iteration, sample[tokens], position[tokens], 0.5)

    first, again, later = (run(model, x, start(iteration), config).delta for iteration in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, later)
    alone = run(model, x[1:2], start(3, slice(S, 2 * S)), config).delta
    assert torch.equal(alone[0], first[1])


# Packed tokens: sequences of 3, 1 and 4 tokens back to back, then a tail of 2 that belongs to no sequence.
LENGTHS = (3, 1, 4)
TAIL = 2


def packed(depth=2):
    """(model, x [T, 1, H], start, segments, mask) of sequences without padding; the model does not mix tokens."""
    torch.manual_seed(8)
    model = TokenModel(depth=depth).double()
    total = sum(LENGTHS) + TAIL
    x, start = torch.randn(total, 1, H, dtype=torch.float64), 0.1 * torch.randn(total, 1, H, dtype=torch.float64)
    lengths = torch.tensor([*LENGTHS, TAIL])
    segments = torch.repeat_interleave(torch.arange(len(LENGTHS) + 1), lengths)[:, None]
    return model, x, start, segments, segments < len(LENGTHS)


def packed_loss(model, x, segments):
    clean = model(x).detach()
    return lambda x_adv: sum_of_samples(kl_rows(clean, model(x_adv)), segments, len(LENGTHS))


def test_packed_sequences_ascend_as_each_does_alone():
    model, x, start, segments, mask = packed()
    config = AlumConfig(epsilon=0.3, step_size=3.0, num_ascent_steps=2)
    options = {"config": config, "perturb": perturb}
    together = ascend(
        x, packed_loss(model, x, segments), start=start, segments=segments, num_segments=3, mask=mask, **options
    )
    assert together.delta[-TAIL:].abs().max() == 0 and together.finite.tolist() == [True] * 3
    begin = 0
    for length in LENGTHS:
        own = slice(begin, begin + length)
        clean = model(x[own]).detach()
        alone = ascend(x[own], lambda e, c=clean: kl_rows(c, model(e)).mean(), start=start[own], **options)
        torch.testing.assert_close(together.delta[own], alone.delta, **EXACT)
        assert (alone.delta - start[own]).abs().max() > 1e-3
        begin += length


@pytest.mark.parametrize("poisoned_step", [1, 2])
def test_a_nonfinite_gradient_costs_only_its_own_sample(poisoned_step):
    """NaN at a token of the third sequence, in the first step or the second: it keeps its start, the others ascend."""
    model, x, start, segments, mask = packed()
    where = torch.zeros(x.shape[:-1], dtype=torch.bool)
    where[5] = True
    inner, calls = packed_loss(model, x, segments), []

    def poisoned(x_adv):
        calls.append(1)
        return inner(PoisonedGradient.apply(x_adv, where) if len(calls) == poisoned_step else x_adv)

    options = {"start": start, "config": AlumConfig(**BIG, num_ascent_steps=2), "perturb": perturb}
    options |= {"segments": segments, "num_segments": 3, "mask": mask}
    bad, good = ascend(x, poisoned, **options), ascend(x, inner, **options)
    assert bad.finite.tolist() == [True, True, False] and bad.nonfinite == 1
    assert torch.equal(bad.delta[4:8], start[4:8]) and torch.equal(bad.delta[:4], good.delta[:4])
    assert not torch.equal(good.delta[4:8], start[4:8])


@pytest.mark.parametrize("place", ["tail", "pad"])
def test_tokens_that_are_never_perturbed_are_not_screened(place):
    model, x, start, segments, mask = packed()
    where = torch.zeros(x.shape[:-1], dtype=torch.bool)
    where[-1 if place == "tail" else 0] = True
    if place == "pad":
        mask = mask & ~where
    inner = packed_loss(model, x, segments)
    poisoned = lambda e: inner(PoisonedGradient.apply(e, where))  # noqa: E731
    options = {"config": AlumConfig(**BIG), "perturb": perturb, "segments": segments, "num_segments": 3, "mask": mask}
    ascent = ascend(x, poisoned, start=start, **options)
    assert ascent.finite.all() and ascent.nonfinite == 0 and torch.isfinite(ascent.delta).all()
    assert torch.equal(ascent.delta, ascend(x, inner, start=start, **options).delta)


def test_one_sample_without_segments_is_screened_whole():
    model, x, start, _, _ = packed()
    where = torch.zeros(x.shape[:-1], dtype=torch.bool)
    where[5] = True
    clean = model(x).detach()
    poisoned = lambda e: kl_rows(clean, model(PoisonedGradient.apply(e, where))).mean()  # noqa: E731
    ascent = ascend(x, poisoned, start=start, config=AlumConfig(**BIG), perturb=perturb)
    assert ascent.finite.tolist() == [False] and torch.equal(ascent.delta, start)


def test_ranks_agree_on_finite_flags(model):
    """Under sequence parallelism another rank may hold the bad part of a sample."""
    x, start, _ = inputs()
    other_rank = torch.tensor([True, True, False])
    ascent = run(model, x, start, AlumConfig(**BIG), agree=lambda finite: finite & other_rank)
    assert ascent.finite.tolist() == [True, True, False]
    torch.testing.assert_close(ascent.delta[2], start[2], rtol=0, atol=0)
