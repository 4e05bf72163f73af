"""The tensor operations of an ALUM step and their plain-torch reference.

`Kernels` holds three callables that a caller may replace: `perturb` (random start, ascent step, projection and the sum
x + delta, one pass over the embeddings), `divergence` (KL of the outputs) and `agree` (finite flags over the ranks that
share a sample). `reference_kernels()` needs nothing but torch; megatron_alum.ops has fused ones with the same meaning.

Shapes: B samples, S positions, H channels; embeddings are [B, S, H] or [S, B, H], masks have their leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

NORMALIZE_EPSILON = 1e-6  # of the released code: keeps a token of zeros finite


class NoiseKey(Protocol):
    """What names a random start without storing it; megatron_alum.ops.NoiseKey is one."""

    @property
    def seed(self) -> int:
        """Of the run."""

    @property
    def iteration(self) -> int:
        """Of the training."""

    @property
    def sample_index(self) -> Tensor:
        """Global sample ids, int64 [B]."""

    @property
    def position(self) -> Tensor:
        """Token positions held here, int64 [S]."""

    @property
    def std(self) -> float:
        """Standard deviation sigma."""

    @property
    def batch_first(self) -> bool:
        """Whether embeddings are [B, S, H], else [S, B, H]."""


Start = Tensor | NoiseKey
Outputs = Any  # a tensor of logits, or a sequence or mapping of them; None entries are skipped
Stats = dict[str, Tensor]


class Perturb(Protocol):
    """(x_adv, delta', stats) of one step; see `reference_perturb`."""

    def __call__(
        self,
        x: Tensor,
        delta: Any,  # Start; implementations may ask for their own noise key
        grad: Tensor | None,
        *,
        step_size: float,
        epsilon: float,
        projection: str,
        mask: Tensor | None,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Any]:
        """Move `delta` along `grad`, project it and add it to `x`."""


class Divergence(Protocol):
    """Divergence of two outputs of the forward function; see `reference_divergence`."""

    def __call__(self, clean: Outputs, adversarial: Outputs, *, symmetric: bool, detach_targets: bool) -> Tensor:
        """A 0-dimensional tensor, differentiable in what is not detached."""


@dataclass(frozen=True)
class Kernels:
    """The replaceable operations of a step."""

    perturb: Perturb
    """random start or ascent step, projection, and the sum with the embeddings"""
    divergence: Divergence
    """divergence of clean and adversarial outputs"""
    agree: Callable[[Tensor], Tensor]
    """bool [B] finite flags -> the same, true only where true on every rank that holds a part of the sample"""


def reference_kernels() -> Kernels:
    """Torch-only kernels for one process; the oracle of the fused ones."""
    return Kernels(perturb=reference_perturb, divergence=reference_divergence, agree=lambda finite: finite)


def reference_perturb(
    x: Tensor,
    delta: Start,
    grad: Tensor | None,
    *,
    step_size: float,
    epsilon: float,
    projection: str,
    mask: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Stats]:
    """One step on `delta`, in float32, and the perturbed embeddings.

    `delta` is a tensor like x or a noise key, `grad` a tensor like x or None for no step (and no projection, which the
    paper applies after a step only). `mask` is bool with x's leading dimensions, False = never perturbed.
    Returns x_adv (x's shape, `out_dtype`, gradient of x flows through), delta' (float32) and 0-dim stats:
    `effective_perturbation` mean |cast(x + delta') - cast(x)| / mean |delta'| and `ascent_ratio` |step| / |delta|
    (Euclidean, 0 without a gradient); NaN for 0 / 0.
    Raises: ValueError for an unknown projection.
    """
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    delta = delta if isinstance(delta, Tensor) else reference_noise(x, delta)
    delta = _masked(delta.to(work), mask)
    step = torch.zeros_like(delta)
    if grad is not None:
        step = _masked(step_size * _direction(grad.to(work), projection), mask)
    moved = delta + step if grad is None else _project(delta + step, epsilon, projection)
    x_adv = (x.to(work) + moved).to(out_dtype)
    effect = x_adv.detach().to(work) - x.detach().to(out_dtype).to(work)
    stats = {
        "effective_perturbation": effect.abs().sum() / moved.abs().sum(),
        "ascent_ratio": torch.zeros_like(step.norm()) if grad is None else step.norm() / delta.norm(),
    }
    return x_adv, moved, stats


def reference_noise(x: Tensor, key: NoiseKey) -> Tensor:
    """N(0, std^2) of x's shape from (seed, iteration), float32.

    Unlike the fused ops' noise it depends on the shape of the batch too, so it is the same on one layout only.
    """
    generator = torch.Generator(device=x.device).manual_seed((key.seed * 1_000_003 + key.iteration) % 2**63)
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float32) * key.std


def reference_divergence(clean: Outputs, adversarial: Outputs, *, symmetric: bool, detach_targets: bool) -> Tensor:
    """Sum over the outputs of the mean KL over their rows, 0-dim float32 (float64 for float64 logits).

    float64 inside: the logits of clean and adversarial pass differ in their last digits, which cancel in float32.

    Logits are [..., C]. One-way: KL(clean || adversarial), gradient to `clean` only without `detach_targets`.
    Symmetric: that plus KL(adversarial || clean), where `detach_targets` stops the gradient of each left-hand side.
    """
    pairs = list(zip(_parts(clean), _parts(adversarial), strict=True))
    means = [_kl(a, b, symmetric, detach_targets).mean() if a.numel() else (a.double() + b).sum() for a, b in pairs]
    out_dtype = torch.float64 if pairs[0][0].dtype == torch.float64 else torch.float32
    return torch.stack(means).sum().to(out_dtype)


def _kl(a: Tensor, b: Tensor, symmetric: bool, detach: bool) -> Tensor:
    """KL of every row, [rows] float64."""
    log_p, log_q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    stop: Callable[[Tensor], Tensor] = torch.Tensor.detach if detach else lambda t: t
    target_p, target_q = stop(log_p), stop(log_q)
    rows = (target_p.exp() * (target_p - log_q)).sum(-1)
    return rows + (target_q.exp() * (target_q - log_p)).sum(-1) if symmetric else rows


def _parts(outputs: Outputs) -> list[Tensor]:
    """The tensors of an output, in order; None entries dropped."""
    if isinstance(outputs, Tensor):
        return [outputs]
    entries = outputs.values() if isinstance(outputs, Mapping) else outputs
    assert isinstance(outputs, (Mapping, Sequence)), f"outputs must be tensors, not {type(outputs).__name__}"
    return [entry for entry in entries if entry is not None]


def _direction(grad: Tensor, projection: str) -> Tensor:
    """The gradient, divided by its largest absolute value of the token for `normalized_gradient`; 0 where that is 0."""
    if projection != "normalized_gradient":
        return grad
    largest = grad.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, grad / largest, torch.zeros_like(grad))


def _project(delta: Tensor, epsilon: float, projection: str) -> Tensor:
    """Line 6's projection; `normalize` is the released code's, a division by the token's largest absolute value."""
    if projection in ("clamp", "normalized_gradient"):
        return delta.clamp(-epsilon, epsilon)
    if projection == "normalize":
        return delta / (delta.abs().amax(-1, keepdim=True) + NORMALIZE_EPSILON)
    raise ValueError(f"`projection` must be clamp, normalize or normalized_gradient, but is {projection!r} instead.")


def _masked(delta: Tensor, mask: Tensor | None) -> Tensor:
    """`delta` with zeros where `mask` is False (by selection: NaN does not survive)."""
    return delta if mask is None else torch.where(mask.unsqueeze(-1), delta, torch.zeros_like(delta))
