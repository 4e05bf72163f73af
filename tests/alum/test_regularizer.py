"""`AlumRegularizer`, the library's entry point: its loss, its statistics, and what a sample's ascent must not depend
on."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_alum.alum import AlumConfig, AlumRegularizer, Samples, reference_divergence
from tests.alum.toy import BIG, EXACT, B, C, H, PoisonedGradient, S, TokenModel, inputs, kl_rows


def symmetric_kl(clean, adversarial):
    """Mean over rows of both directions, by definition."""
    return (kl_rows(clean, adversarial) + kl_rows(adversarial, clean)).mean()


def test_loss_and_statistics_by_their_definitions(model):
    x, start, mask = inputs()
    start = start.clamp(-0.1, 0.1)
    out = AlumRegularizer(AlumConfig(**BIG))(x, model(x), model, noise_key=start, mask=mask)
    adversarial = model(x + out.delta)
    torch.testing.assert_close(out.adversarial_outputs, adversarial, **EXACT)
    torch.testing.assert_close(out.loss, symmetric_kl(model(x), adversarial), **EXACT)
    before = kl_rows(model(x), model(x + torch.where(mask.unsqueeze(-1), start, 0.0))).mean()
    torch.testing.assert_close(out.stats["inner_kl_start"], before.detach(), **EXACT)
    gain = kl_rows(model(x), adversarial).mean() - before
    torch.testing.assert_close(out.stats["kl_gain"], gain.detach(), **EXACT)
    assert out.stats["kl_gain"] > 0.2 * before and out.stats["nonfinite"] == 0
    assert out.stats["effective_perturbation"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("inner_reduction", ["sample", "batch"])
def test_statistics_are_means_whatever_is_climbed(model, inner_reduction):
    x, start, _ = inputs()
    regularizer = AlumRegularizer(AlumConfig(inner_reduction=inner_reduction))
    out = regularizer(x, model(x), model, noise_key=start)
    expected = kl_rows(model(x), model(x + start)).mean()
    torch.testing.assert_close(out.stats["inner_kl_start"], expected.detach(), **EXACT)


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


def test_without_steps_the_perturbation_is_the_random_start(model):
    """K = 0: one forward, the divergence at the start, no statistics of an ascent that did not happen."""
    x, start, mask = inputs()
    calls = []
    forward = lambda e: (calls.append(1), model(e))[1]  # noqa: E731
    out = AlumRegularizer(AlumConfig(num_ascent_steps=0))(x, model(x), forward, noise_key=start, mask=mask)
    torch.testing.assert_close(out.delta, torch.where(mask.unsqueeze(-1), start, 0.0), rtol=0, atol=0)
    torch.testing.assert_close(out.loss, symmetric_kl(model(x), model(x + out.delta)), **EXACT)
    assert len(calls) == 1 and set(out.stats) == {"effective_perturbation", "ascent_ratio", "nonfinite"}
    out.loss.backward()
    assert model.head.weight.grad.abs().max() > 0


class Mixer(torch.nn.Module):
    """Tokens of one sequence interact through their mean; no operation's rounding depends on the batch."""

    def __init__(self):
        super().__init__()
        self.token = torch.nn.Linear(H, H)
        self.head = torch.nn.Linear(H, C)

    def forward(self, x):
        return torch.stack([self.head(torch.tanh(self.token(one) + one.mean(0))) for one in x])


def climb(model, x, start, reduction, eta=20.0):
    """g of each sample, from a step that is not projected."""
    config = AlumConfig(epsilon=1e6, step_size=eta, inner_reduction=reduction)
    return (AlumRegularizer(config)(x, model(x), model, noise_key=start).delta - start) / eta


def sixty_four(dtype):
    torch.manual_seed(0)
    return Mixer().to(dtype), torch.randn(64, S, H, dtype=dtype), 0.1 * torch.randn(64, S, H, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_of_a_sample_is_the_same_whatever_else_is_in_the_batch(dtype):
    """Bit for bit: alone, among 7 others, among 7 different ones, at batch 8 and 64."""
    model, x, start = sixty_four(dtype)
    whole = climb(model, x, start, "sample")
    assert whole.abs().amin() > 0
    for batch in (slice(0, 1), slice(0, 8), torch.tensor([0, *range(50, 57)])):
        assert torch.equal(climb(model, x[batch], start[batch], "sample")[0], whole[0])


def test_reduction_over_the_batch_is_noticed():
    """The mutant of the last test: a mean over all rows makes g fall with the batch, 8 times from 8 to 64."""
    model, x, start = sixty_four(torch.float64)
    small, large = (climb(model, x[:n], start[:n], "batch")[0] for n in (8, 64))
    torch.testing.assert_close(small, 8 * large, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(climb(model, x, start, "sample")[0], 64 * large, rtol=1e-9, atol=1e-12)


def test_masked_rows_are_a_mean_over_each_samples_own():
    """Sample 0 has three rows, sample 1 one, sample 2 none; two more rows are not counted; NSP rows add one term
    each."""
    torch.manual_seed(5)
    model, pairs = TokenModel(depth=2).double(), torch.nn.Linear(H, 2).double()
    x, start, _ = inputs()
    place, owner = torch.tensor([0, 2, 3, 5, 9, 11]), torch.tensor([0, 0, 0, 1, B, B])

    def forward(e):
        return model(e).flatten(0, 1)[place], pairs(e[:, 0])

    of_tokens = torch.arange(B)[:, None].expand(B, S)
    samples = Samples(B, of_tokens, (owner, torch.arange(B)))
    config = AlumConfig(epsilon=1e6, step_size=20.0)
    out = AlumRegularizer(config)(x, forward(x), forward, noise_key=start, samples=samples)
    (rows, nsp), (adversarial_rows, adversarial_nsp) = forward(x), forward(x + out.delta)
    expected = symmetric_kl(rows[:4], adversarial_rows[:4]) + symmetric_kl(nsp, adversarial_nsp)
    torch.testing.assert_close(out.loss, expected, **EXACT)
    for b in range(B):
        delta = start.clone().requires_grad_(True)
        moved_rows, moved_nsp = forward(x + delta)
        loss = kl_rows(nsp[b].detach(), moved_nsp[b])
        if (owner == b).any():
            loss = loss + kl_rows(rows.detach(), moved_rows)[owner == b].mean()
        (g,) = torch.autograd.grad(loss, delta)
        torch.testing.assert_close(out.delta[b], start[b] + 20.0 * g[b], **EXACT)


def test_rows_without_their_samples_are_refused(model):
    x, start, _ = inputs()
    forward = lambda e: model(e).flatten(0, 1)[:7]  # noqa: E731
    with pytest.raises(ValueError, match=r"`samples` must be given .*\(3\), but they are \[7\] instead"):
        AlumRegularizer(AlumConfig())(x, forward(x), forward, noise_key=start)


def test_candidates_of_a_choice_are_one_sample():
    """Four sequences, two samples of two candidates: the batch size is that of the logits."""
    x, logits = torch.zeros(4, S, H), torch.zeros(2, 2)
    samples = Samples.batch_first(x, logits)
    assert samples.count == 2 and samples.of_rows[0].tolist() == [0, 1]
    assert samples.of_tokens.tolist() == [[0] * S, [0] * S, [1] * S, [1] * S]


def test_a_nonfinite_sample_leaves_the_loss_and_the_others_stay(model):
    """Its rows add exactly 0 to the divergence and its gradient despite a NaN: 0 * NaN would not."""
    x, start, _ = inputs()
    where, calls = torch.zeros(B, S, dtype=torch.bool), []
    where[1, 0] = True

    def forward(embeddings):
        calls.append(embeddings)
        return model(PoisonedGradient.apply(embeddings, where) if len(calls) == 1 else embeddings)

    out = AlumRegularizer(AlumConfig(**BIG))(x, model(x), forward, noise_key=start)
    assert out.stats["nonfinite"] == 1 and torch.equal(out.delta[1], start[1])
    others = [0, 2]
    rows = reference_divergence(model(x[others]), model((x + out.delta)[others]), symmetric=True, detach_targets=True)
    expected = rows.sum() / (B * S)  # the mean is over all rows
    torch.testing.assert_close(out.loss, expected, **EXACT)
    found, wanted = (torch.autograd.grad(loss, model.head.weight)[0] for loss in (out.loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


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


def test_the_callers_divergence_is_used(model):
    x, start, _ = inputs()
    doubled = lambda a, b, **options: 2 * reference_divergence(a, b, **options)  # noqa: E731
    losses = [
        AlumRegularizer(AlumConfig(num_ascent_steps=0), divergence=d)(x, model(x), model, noise_key=start).loss.item()
        for d in (reference_divergence, doubled)
    ]
    assert losses[1] == pytest.approx(2 * losses[0])


@pytest.mark.parametrize(
    ("field", "value"), [("ascent", "label"), ("nsp", False), ("batch_fraction", 0.5), ("head_chunk_rows", 4)]
)
def test_settings_of_the_pre_training_loop_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be .* for AlumRegularizer"):
        AlumRegularizer(AlumConfig(**{field: value}))


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
