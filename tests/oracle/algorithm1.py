"""Algorithm 1 of ALUM (arXiv 2004.08994) in float64, each sequence alone: the independent reference for every training
step.

    result = algorithm_1(Network("bert", weights, num_heads=4), sequences, Settings(alpha=3.0))
    result.loss, result.alum_kl, result.deltas[0], result.gradients["bert.embeddings.word_embeddings.weight"]

Nothing of the project is imported: the forward is `network.py`'s, gradients are torch's autograd in float64, the random
start of each sequence is given. Dropout is 0. Losses are means over the whole list of sequences: MLM over its masked
tokens, next sentence over its labelled sequences, divergences over those with a random start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.oracle.network import Network, Sequence

Outputs = tuple[Tensor, Tensor | None]
"""MLM logits [N, V] and NSP logits [2]"""


@dataclass(frozen=True)
class Settings:
    """The choices that Algorithm 1 leaves open; names and values are those of the `--alum-` flags."""

    alpha: float = 10.0
    epsilon: float = 1e-5
    step_size: float = 1e-3
    num_ascent_steps: int = 1
    projection: str = "clamp"
    """clamp | normalize | normalized_gradient"""
    perturb: str = "word"
    """word | encoder_input | layer"""
    perturb_layer: int = 0
    """for `layer`: x is the hidden state after this many layers"""
    inner_divergence: str = "kl"
    """kl | symmetric"""
    inner_reduction: str = "sample"
    """sample: mean over the sequence's own masked tokens, plus its NSP term; batch: its share of the whole list's"""
    detach_targets: bool = True
    detach_embeddings: bool = False
    nsp: bool = True
    ascent: str = "virtual"
    """virtual: maximise the divergence, minimise labels + alpha x divergence; label: maximise the loss of the labels
    and minimise it at x + delta"""


@dataclass(frozen=True)
class Result:
    """0-dim tensors are float64 and have no graph."""

    lm_loss: Tensor
    nsp_loss: Tensor
    alum_kl: Tensor
    """symmetric KL per masked token, without alpha"""
    alum_nsp_kl: Tensor
    loss: Tensor
    """lm + nsp + alpha (alum_kl + alum_nsp_kl)"""
    inner_start: Tensor
    """what the ascent maximises, at the random start: sum over the sequences in units of the whole list (reduction
    batch)"""
    inner_end: Tensor
    """the same at the final delta"""
    deltas: list[Tensor | None]
    """[L, H] per sequence"""
    gradients: dict[str, Tensor]
    """of `loss`, by the names of the weights; zeros for a weight that the loss does not depend on"""


@dataclass(frozen=True)
class _Counts:
    """Denominators of the whole list, at least 1."""

    masked: int
    labelled: int
    adversarial_masked: int
    adversarial_sequences: int


def algorithm_1(network: Network, sequences: list[Sequence], settings: Settings) -> Result:
    """Losses, perturbations and the gradient of every weight (line numbers as in the paper)."""
    weights = {name: w.detach().double().requires_grad_(True) for name, w in network.weights.items()}
    network = replace(network, weights=weights)
    counts = _count(sequences)
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("lm", "nsp", "kl", "nsp_kl", "start", "end")}
    deltas: list[Tensor | None] = []
    for sequence in sequences:
        x = network.below(sequence, settings.perturb, settings.perturb_layer)
        clean = _outputs(network, x, sequence, settings)
        if sequence.start is None:
            deltas.append(None)
            _add(sums, _label_losses(clean, sequence))
            continue
        delta = _ascend(network, sequence, x.detach(), _detached(clean), settings, counts)  # lines 3 to 7
        deltas.append(delta)
        x_adv = (x.detach() if settings.detach_embeddings else x) + delta
        adversarial = _outputs(network, x_adv, sequence, settings)
        if settings.ascent == "label":
            _add(sums, _label_losses(adversarial, sequence))
            continue
        _add(sums, _label_losses(clean, sequence))
        _add(sums, _outer(clean, adversarial, settings))
        with torch.no_grad():
            first = _outputs(network, x + sequence.start.double(), sequence, settings)
            sums["start"] = sums["start"] + _inner(_detached(clean), first, sequence, settings, counts, "batch")
            sums["end"] = sums["end"] + _inner(_detached(clean), adversarial, sequence, settings, counts, "batch")
    lm, nsp = sums["lm"] / counts.masked, sums["nsp"] / counts.labelled
    kl, nsp_kl = sums["kl"] / counts.adversarial_masked, sums["nsp_kl"] / counts.adversarial_sequences
    loss = lm + nsp + settings.alpha * (kl + nsp_kl)  # line 8
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    gradients = {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), found, strict=True)}
    values = (value.detach() for value in (lm, nsp, kl, nsp_kl, loss, sums["start"], sums["end"]))
    return Result(*values, deltas=deltas, gradients=gradients)


def standard_step(network: Network, sequences: list[Sequence]) -> Result:
    """MLM and next sentence without an adversarial branch."""
    return algorithm_1(network, [replace(sequence, start=None) for sequence in sequences], Settings())


def _ascend(
    network: Network, sequence: Sequence, x: Tensor, clean: Outputs, settings: Settings, counts: _Counts
) -> Tensor:
    """Lines 3 to 7: K projected steps from the given start; x [L, H] and the clean outputs are constants."""
    assert sequence.start is not None
    delta = sequence.start.double()
    for _ in range(settings.num_ascent_steps):
        delta = delta.detach().requires_grad_(True)
        reached = _outputs(network, x + delta, sequence, settings)
        climbed = _inner(clean, reached, sequence, settings, counts, settings.inner_reduction)
        (g,) = torch.autograd.grad(climbed, delta)
        delta = _project(delta.detach(), g, settings)
    return delta.detach()


def _project(delta: Tensor, g: Tensor, settings: Settings) -> Tensor:
    """Line 6, [L, H]."""
    eta, epsilon = settings.step_size, settings.epsilon
    if settings.projection == "normalize":
        moved = delta + eta * g
        return moved / (moved.abs().amax(-1, keepdim=True) + 1e-6)
    if settings.projection == "normalized_gradient":
        largest = g.abs().amax(-1, keepdim=True)
        g = torch.where(largest > 0, g / largest.where(largest > 0, 1.0), 0.0)
    else:
        assert settings.projection == "clamp"
    return (delta + eta * g).clamp(-epsilon, epsilon)


def _inner(
    clean: Outputs, reached: Outputs, sequence: Sequence, settings: Settings, counts: _Counts, reduction: str
) -> Tensor:
    """What line 5 differentiates: the divergence from the clean outputs, or the loss of the labels."""
    rows = len(sequence.masked_labels)
    labelled = settings.ascent == "label"
    if reduction == "batch":
        per_token = counts.masked if labelled else counts.adversarial_masked
        per_pair = counts.labelled if labelled else counts.adversarial_sequences
    else:
        per_token, per_pair = max(1, rows), 1
    if labelled:
        losses = _label_losses(reached, sequence)
        return losses["lm"] / per_token + losses["nsp"] / per_pair
    total = torch.zeros((), dtype=torch.float64)
    for number, divisor in ((0, per_token), (1, per_pair)):
        a, b = clean[number], reached[number]
        if a is None or b is None or (number == 1 and not settings.nsp):
            continue
        one_way = _kl(a, b).sum()
        total = total + (one_way + _kl(b, a).sum() if settings.inner_divergence == "symmetric" else one_way) / divisor
    return total


def _outer(clean: Outputs, adversarial: Outputs, settings: Settings) -> dict[str, Tensor]:
    """Sums of the symmetric divergence that line 8 minimises."""
    sums = {}
    for number, name in ((0, "kl"), (1, "nsp_kl")):
        a, b = clean[number], adversarial[number]
        if a is None or b is None or (number == 1 and not settings.nsp):
            continue
        target_a, target_b = (a.detach(), b.detach()) if settings.detach_targets else (a, b)
        sums[name] = (_kl(target_a, b) + _kl(target_b, a)).sum()
    return sums


def _label_losses(outputs: Outputs, sequence: Sequence) -> dict[str, Tensor]:
    """Sums of the cross-entropies."""
    mlm, nsp = outputs
    sums = {"lm": -mlm.log_softmax(-1)[torch.arange(len(mlm)), sequence.masked_labels].sum()}
    if nsp is not None and sequence.nsp_label is not None:
        sums["nsp"] = -nsp.log_softmax(-1)[sequence.nsp_label]
    else:
        sums["nsp"] = torch.zeros((), dtype=torch.float64)
    return sums


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(softmax a || softmax b) of every row.

    sum p d with d = log p - log q, written as sum p (d + q/p - 1): the probabilities add up to 1, so it is the same
    number, but every term is of the order of d squared and keeps its digits where d is 1e-6.
    """
    d = a.log_softmax(-1) - b.log_softmax(-1)
    return (a.softmax(-1) * (torch.expm1(-d) + d)).sum(-1)


def _outputs(network: Network, x: Tensor, sequence: Sequence, settings: Settings) -> Outputs:
    _, mlm, nsp = network.above(x, sequence, settings.perturb, settings.perturb_layer)
    return mlm, nsp


def _detached(outputs: Outputs) -> Outputs:
    mlm, nsp = outputs
    return mlm.detach(), None if nsp is None else nsp.detach()


def _add(sums: dict[str, Tensor], new: Mapping[str, Tensor]) -> None:
    for name, value in new.items():
        sums[name] = sums[name] + value


def _count(sequences: list[Sequence]) -> _Counts:
    adversarial = [sequence for sequence in sequences if sequence.start is not None]
    numbers = (
        sum(len(sequence.masked_labels) for sequence in sequences),
        sum(sequence.nsp_label is not None for sequence in sequences),
        sum(len(sequence.masked_labels) for sequence in adversarial),
        len(adversarial),
    )
    return _Counts(*(max(1, number) for number in numbers))
