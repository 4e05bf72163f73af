"""The oracle itself: its forward against transformers, its divergence against scipy, its gradients against finite
differences.

Nothing of the project runs here. Tolerances are those of float64 and of central differences with h = 1e-5.
"""

from dataclasses import replace

import pytest
import torch
from scipy.special import rel_entr

from tests.helpers.pairs import pairs
from tests.oracle import models
from tests.oracle.algorithm1 import Settings, _kl, _outer, algorithm_1, standard_step

ARCHITECTURES = tuple(models.CLASSES)
LEVELS = (("word", 0), ("encoder_input", 0), ("layer", 1), ("layer", 2))
CLIMBED = (("virtual", "kl"), ("virtual", "symmetric"), ("label", "kl"))
FLOAT64 = 1e-12
STEP, DIFFERENCES = 1e-5, 1e-7
LARGE = {"epsilon": 10.0, "alpha": 3.0}
"""a ball so large that no step leaves it"""


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(("level", "layer"), LEVELS)
@torch.no_grad()
def test_the_forward_is_that_of_transformers(model_type, level, layer):
    hf, network = models.hf_model(model_type), models.network(model_type)
    for sequence in models.sequences(model_type):
        theirs = hf(sequence.tokens[None], token_type_ids=sequence.token_types[None], output_hidden_states=True)
        x = network.below(sequence, level, layer)
        hidden, mlm, nsp = network.above(x, sequence, level, layer)
        their_mlm = theirs.logits if model_type == "roberta" else theirs.prediction_logits
        assert (hidden - theirs.hidden_states[-1][0]).abs().max() < FLOAT64 * 100
        assert (mlm - their_mlm[0, sequence.masked_positions]).abs().max() < FLOAT64 * 100
        if level == "layer":
            assert (x - theirs.hidden_states[layer][0]).abs().max() < FLOAT64 * 100
        if nsp is not None:
            assert (nsp - theirs.seq_relationship_logits[0]).abs().max() < FLOAT64 * 100
        assert (nsp is None) == (model_type == "roberta")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_standard_losses_and_gradients_are_those_of_transformers(model_type):
    hf, sequences = models.hf_model(model_type), models.sequences(model_type)
    cross_entropy = torch.nn.functional.cross_entropy
    rows, pairs, labels = [], [], []
    for sequence in sequences:
        out = hf(sequence.tokens[None], token_type_ids=sequence.token_types[None])
        logits = out.logits if model_type == "roberta" else out.prediction_logits
        rows.append(logits[0, sequence.masked_positions])
        if model_type != "roberta":
            pairs.append(out.seq_relationship_logits[0])
            labels.append(sequence.nsp_label)
    loss = cross_entropy(torch.cat(rows), torch.cat([sequence.masked_labels for sequence in sequences]))
    if pairs:
        loss = loss + cross_entropy(torch.stack(pairs), torch.tensor(labels))
    loss.backward()
    found = standard_step(models.network(model_type), sequences)
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=FLOAT64)
    for name, parameter in hf.named_parameters():
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (found.gradients[name] - theirs).abs().max() < 1e-11, name


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 3.0])
def test_kl_is_that_of_scipy_and_keeps_its_digits(scale):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    b = a + scale * torch.randn(7, 40, generator=generator, dtype=torch.float64)
    if scale >= 1e-2:
        plain = rel_entr(a.softmax(-1).numpy(), b.softmax(-1).numpy()).sum(-1)
        assert _kl(a, b).numpy() == pytest.approx(plain, rel=1e-9)
    else:  # to second order KL is half the variance of the difference under p
        p, d = a.softmax(-1), a - b
        variance = (p * d.square()).sum(-1) - (p * d).sum(-1).square()
        assert _kl(a, b).numpy() == pytest.approx(variance.numpy() / 2, rel=1e-5)


def test_detached_targets_give_the_difference_of_the_probabilities():
    """dL/da = p - q and dL/db = q - p for KL(p'||q) + KL(q'||p) with p' and q' constants."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 11, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    grads = torch.autograd.grad(_outer((a, None), (b, None), Settings())["kl"], (a, b))
    difference = (a.softmax(-1) - b.softmax(-1)).detach()
    assert (grads[0] - difference).abs().max() < FLOAT64
    assert (grads[1] + difference).abs().max() < FLOAT64


@pytest.mark.parametrize(*pairs(model_type=ARCHITECTURES, at=LEVELS, climbed_loss=CLIMBED), ids=str)
def test_a_step_follows_the_gradient_of_what_is_climbed(model_type, at, climbed_loss):
    """g = (delta' - delta) / eta against central differences of the loss as a function of the random start."""
    network, sequence = models.network(model_type), models.sequences(model_type)[1]
    (level, layer), (ascent, inner) = at, climbed_loss
    settings = Settings(
        **LARGE, step_size=0.5, perturb=level, perturb_layer=layer, inner_divergence=inner, ascent=ascent
    )

    def climbed(start):
        found = algorithm_1(network, [replace(sequence, start=start)], replace(settings, num_ascent_steps=0))
        return float(found.loss if ascent == "label" else found.inner_start)

    delta = algorithm_1(network, [sequence], settings).deltas[0]
    g = (delta - sequence.start) / settings.step_size
    for token, channel in ((0, 0), (5, 7), (13, 19)):
        shift = torch.zeros_like(g)
        shift[token, channel] = STEP
        difference = (climbed(sequence.start + shift) - climbed(sequence.start - shift)) / (2 * STEP)
        assert float(g[token, channel]) == pytest.approx(difference, rel=1e-5, abs=DIFFERENCES)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(("level", "layer"), LEVELS)
def test_gradients_are_differences_of_the_loss(model_type, level, layer):
    """With full gradients and a fixed delta (K = 0) the loss is a plain function of the weights: its slope along a
    random direction through all of them."""
    network, sequences = models.network(model_type), models.sequences(model_type)
    settings = Settings(**LARGE, num_ascent_steps=0, detach_targets=False, perturb=level, perturb_layer=layer)
    found = algorithm_1(network, sequences, settings).gradients
    generator = torch.Generator().manual_seed(3)
    shift = {name: torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in network.weights.items()}
    ends = []
    for sign in (STEP, -STEP):
        moved = {name: weight + sign * shift[name] for name, weight in network.weights.items()}
        ends.append(float(algorithm_1(replace(network, weights=moved), sequences, settings).loss))
    slope = sum(float((found[name] * shift[name]).sum()) for name in shift)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-6)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_ascent_climbs(model_type, steps):
    sequences = models.sequences(model_type, std=0.02)
    for projection, settings in {
        "clamp": Settings(epsilon=0.1, step_size=0.5),
        "normalized_gradient": Settings(epsilon=0.1, step_size=0.02, projection="normalized_gradient"),
    }.items():
        settings = replace(settings, num_ascent_steps=steps)
        found = algorithm_1(models.network(model_type), sequences, settings)
        assert found.inner_end > found.inner_start > 0, projection
        assert all(delta.abs().max() <= settings.epsilon for delta in found.deltas)


def test_projections_are_the_written_ones():
    """By hand, on the recovered gradient of one step without a bound."""
    network, sequence = models.network("bert"), models.sequences("bert")[0]

    def step(**options):
        return algorithm_1(network, [sequence], Settings(**options)).deltas[0]

    start, eta = sequence.start, 0.7
    g = (step(epsilon=10.0, step_size=eta) - start) / eta
    largest = torch.tensor([max(abs(float(value)) for value in row) for row in g], dtype=torch.float64)[:, None]
    moved = start + eta * g
    rows = torch.tensor([max(abs(float(value)) for value in row) for row in moved], dtype=torch.float64)[:, None]
    assert torch.allclose(step(epsilon=0.03, step_size=eta), moved.clamp(-0.03, 0.03), rtol=1e-9, atol=1e-15)
    normalized = step(epsilon=0.06, step_size=0.04, projection="normalized_gradient")
    assert torch.allclose(normalized, (start + 0.04 * g / largest).clamp(-0.06, 0.06), rtol=1e-9, atol=1e-15)
    assert torch.allclose(step(projection="normalize", step_size=eta), moved / (rows + 1e-6), rtol=1e-9, atol=1e-15)


def test_reductions_differ_only_by_the_counts():
    """RoBERTa has one term: its sample gradient is the batch's times (all masked tokens / the sequence's own)."""
    network, sequences = models.network("roberta"), models.sequences("roberta")
    own, shared = (
        algorithm_1(network, sequences, Settings(**LARGE, step_size=0.5, inner_reduction=reduction)).deltas
        for reduction in ("sample", "batch")
    )
    total = sum(len(sequence.masked_labels) for sequence in sequences)
    for sequence, a, b in zip(sequences, own, shared, strict=True):
        ratio = total / len(sequence.masked_labels)
        assert torch.allclose(a - sequence.start, ratio * (b - sequence.start), rtol=1e-9, atol=1e-13)
