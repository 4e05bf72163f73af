"""Token role in plain torch: a projected ascent step of the perturbation, the sum with the embeddings, the statistics.

Letters: T tokens (all leading dimensions), H channels. g is the gradient of the divergence with respect to delta.
Order of operations as in csrc/common/projection.h; float32 throughout (float64 for float64 input).

    clamp                 clamp(delta + eta g, -epsilon, epsilon)                     (the paper)
    normalize             (delta + eta g) / (max_h |delta + eta g| + 1e-6)            (the authors' released code)
    normalized_gradient   clamp(delta + eta g / max_h |g|, -epsilon, epsilon)         (VAT, SMART)

A token whose g holds a NaN or an infinity keeps its delta, and is counted.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_alum.reference.noise import NoiseKey, gaussian_noise

PROJECTIONS = ("clamp", "normalize", "normalized_gradient")
NORMALIZE_FLOOR = 1e-6  # as in the released code: keeps a zero perturbation finite
SUMS = 6
"""sum |delta'|, sum |cast(x + delta') - cast(x)|, sum delta'^2, sum step^2, sum delta^2, tokens of non-finite
gradient. The step is eta g, or eta g / max_h |g| for normalized_gradient."""


def ascend_and_project(delta: Tensor, grad: Tensor, step_size: float, epsilon: float, projection: str) -> Tensor:
    """delta' [..., H] in delta's working dtype."""
    dtype = torch.float64 if delta.dtype == torch.float64 else torch.float32
    delta, grad = delta.to(dtype), grad.to(dtype)
    stepped = delta + step_size * scaled_gradient(grad, projection)
    if projection == "normalize":
        result = stepped / (stepped.abs().amax(-1, keepdim=True) + NORMALIZE_FLOOR)
    else:
        result = stepped.clamp(-epsilon, epsilon)
    return torch.where(finite_tokens(grad)[..., None], result, delta)


def scaled_gradient(grad: Tensor, projection: str) -> Tensor:
    """g [..., H] as the step uses it."""
    if projection != "normalized_gradient":
        return grad
    norm = grad.abs().amax(-1, keepdim=True)
    return torch.where(norm > 0, grad / norm, grad)


def finite_tokens(grad: Tensor) -> Tensor:
    """[...] bool: every channel of the token's gradient is finite."""
    return torch.isfinite(grad).all(-1)


def perturb(
    x: Tensor,
    delta: Tensor | NoiseKey,
    grad: Tensor | None,
    *,
    step_size: float,
    epsilon: float,
    projection: str = "clamp",
    mask: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x + delta', delta', sums [SUMS]), as `megatron_alum.ops.perturb_embeddings`, which documents the arguments.

    Tokens outside `mask` get delta' = 0 and are not counted. Without grad delta' = delta. The gradient of x + delta'
    flows to x alone.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    start = (delta if isinstance(delta, Tensor) else noise_like(x, delta)).detach().to(dtype)
    zero = torch.zeros((), dtype=dtype, device=x.device)
    inside = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
    keep = inside[..., None]
    nonfinite, step_square, moved = zero, zero, start
    if grad is not None:
        grad = grad.detach()
        finite = finite_tokens(grad)
        nonfinite = (inside & ~finite).sum().to(dtype)
        step = step_size * scaled_gradient(grad.to(dtype), projection)
        step_square = torch.where(keep & finite[..., None], step, 0.0).square().sum()
        moved = ascend_and_project(start, grad, step_size, epsilon, projection)
    moved = torch.where(keep, moved, 0.0)
    x_adv = (x.to(dtype) + moved).to(out_dtype or x.dtype)
    seen = x_adv.detach().to(dtype) - x.detach().to(x_adv.dtype).to(dtype)
    sums = [moved.abs().sum(), seen.abs().sum(), moved.square().sum(), step_square]
    sums += [torch.where(keep, start, 0.0).square().sum(), nonfinite]
    return x_adv, moved, torch.stack(sums)


def noise_like(x: Tensor, key: NoiseKey) -> Tensor:
    """The random start that `key` names, in x's shape [..., H]."""
    noise = gaussian_noise(key.sample_index, key.position, x.shape[-1], key.std, (key.seed, key.iteration))
    return noise.view(x.shape)


class PerturbationStatistics(NamedTuple):
    """0-dim float32 device tensors over the tokens whose sums they were formed from."""

    effective_perturbation: Tensor
    """sum |cast(x + delta') - cast(x)| / sum |delta'|: 1 when the model's dtype sees all of it, 0 when none; NaN for
    0/0."""
    ascent_ratio: Tensor
    """||step|| / ||delta|| in the Euclidean norm, the step before projection and delta before the step; 0 without a
    gradient."""
    nonfinite_tokens: Tensor
    """Tokens whose gradient held a NaN or an infinity; they kept their delta."""
    delta_norm: Tensor
    """Euclidean norm of delta'."""


def perturbation_statistics(sums: Tensor) -> PerturbationStatistics:
    """From the raw sums [SUMS] of `perturb`; add up those of several calls or ranks before."""
    l1, moved, square, step_square, start_square, nonfinite = sums.unbind()
    ratio = torch.where(step_square > 0, (step_square / start_square).sqrt(), torch.zeros_like(step_square))
    return PerturbationStatistics(moved / l1, ratio, nonfinite, square.sqrt())
