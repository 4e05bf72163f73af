"""Tile role in plain torch: one projected ascent step of the perturbation, the sum with the embeddings, the statistics.

Letters: T tokens (all leading dimensions), H channels. g is the gradient of the divergence with respect to delta.
Order of operations as in csrc/common/projection.h; float32 throughout (float64 for float64 input).

    clamp                 clamp(delta + eta g, -epsilon, epsilon)                     (the paper)
    normalize             (delta + eta g) / (max_h |delta + eta g| + 1e-6)            (the authors' released code)
    normalized_gradient   clamp(delta + eta g / max_h |g|, -epsilon, epsilon)         (VAT, SMART, FreeLB)

A token whose g holds a NaN or an infinity keeps its delta, and is counted.
"""

import torch
from torch import Tensor

PROJECTIONS = ("clamp", "normalize", "normalized_gradient")
NORMALIZE_FLOOR = 1e-6  # as in the released code: keeps a zero perturbation finite
SUMS = 6
"""sum |delta'|, sum |cast(x + delta') - cast(x)|, sum delta'^2, sum (eta g)^2, sum delta^2, tokens of non-finite
gradient."""


def ascend_and_project(delta: Tensor, grad: Tensor, step_size: float, epsilon: float, projection: str) -> Tensor:
    """delta' [..., H] in delta's working dtype."""
    dtype = torch.float64 if delta.dtype == torch.float64 else torch.float32
    delta, grad = delta.to(dtype), grad.to(dtype)
    if projection == "normalized_gradient":
        norm = grad.abs().amax(-1, keepdim=True)
        grad = torch.where(norm > 0, grad / norm, grad)
    stepped = delta + step_size * grad
    if projection == "normalize":
        result = stepped / (stepped.abs().amax(-1, keepdim=True) + NORMALIZE_FLOOR)
    else:
        result = stepped.clamp(-epsilon, epsilon)
    return torch.where(finite_tokens(grad)[..., None], result, delta)


def finite_tokens(grad: Tensor) -> Tensor:
    """[...] bool: every channel of the token's gradient is finite."""
    return torch.isfinite(grad).all(-1)


def perturb(
    x: Tensor,
    delta: Tensor,
    grad: Tensor | None,
    step_size: float,
    epsilon: float,
    projection: str,
    mask: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_adv, delta', sums [SUMS]). Tokens outside `mask` get delta' = 0 and count nowhere. Without grad delta' =
    delta."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    delta = delta.to(dtype)
    zero = torch.zeros((), dtype=dtype, device=x.device)
    inside = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
    keep = inside[..., None]
    nonfinite, step_square = zero, zero
    start = delta
    if grad is not None:
        finite = finite_tokens(grad)
        nonfinite = (inside & ~finite).sum().to(dtype)
        step_square = torch.where(keep & finite[..., None], step_size * grad.to(dtype), 0.0).square().sum()
        delta = ascend_and_project(delta, grad, step_size, epsilon, projection)
    delta = torch.where(keep, delta, 0.0)
    x_adv = (x.to(dtype) + delta).to(out_dtype)
    moved = x_adv.to(dtype) - x.to(out_dtype).to(dtype)
    sums = [delta.abs().sum(), moved.abs().sum(), delta.square().sum(), step_square]
    sums += [torch.where(keep, start, 0.0).square().sum(), nonfinite]
    return x_adv, delta, torch.stack(sums)
