"""One projected ascent step of the perturbation, fused with the sum x + delta and its statistics (the token role).

Formulas of the three projections: megatron_alum/reference/tokens.py. The step and the projection are the same
function for every implementation, in float32; the statistics stay on the device, so nothing here waits for the GPU.
"""

import math
from typing import Any

import torch
from torch import Tensor

from megatron_alum.config.words import not_one_of
from megatron_alum.ops import dispatch
from megatron_alum.reference import tokens as reference
from megatron_alum.reference.noise import NoiseKey
from megatron_alum.reference.tokens import PerturbationStatistics, perturbation_statistics

__all__ = ["PerturbationStatistics", "ascend_and_project", "perturb_embeddings", "perturbation_statistics"]


def ascend_and_project(
    delta: Tensor, grad: Tensor, *, step_size: float, epsilon: float, projection: str = "clamp", impl: str = "auto"
) -> Tensor:
    """delta' = project(delta + step_size * grad), float32 [..., H]; the last dimension is one token's channels.

    projection: "clamp" | "normalize" | "normalized_gradient". A token with a non-finite gradient keeps its delta.
    """
    _check(delta, grad, None, step_size, epsilon, projection)
    if dispatch.select(impl, delta, grad) == "reference":
        return reference.ascend_and_project(delta.detach(), grad.detach(), step_size, epsilon, projection)
    step = step_size, epsilon, reference.PROJECTIONS.index(projection)
    no_noise = None, None, 0.0, 0, 0, 0
    perturb = torch.ops.megatron_alum.perturb
    return perturb(None, delta.detach(), *no_noise, grad.detach(), *step, None, torch.float32)[1]


def perturb_embeddings(
    x: Tensor,
    delta: Tensor | NoiseKey,
    grad: Tensor | None = None,
    *,
    step_size: float,
    epsilon: float,
    projection: str = "clamp",
    mask: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """(x + delta' in `out_dtype`, delta' in float32, sums [6] in float32), in one pass over the tokens.

    x [..., H]; delta of the same shape, or a NoiseKey with an entry for each token in the row-major order of x's
    leading dimensions: noise generated in the kernel. grad None skips the step (delta' = delta). mask bool of x's
    leading shape, True = may be perturbed; elsewhere delta' = 0. out_dtype defaults to that of x. The gradient of
    x + delta' flows to x alone, unchanged but for its dtype. The sums are raw, over the tokens inside the mask:
    `perturbation_statistics` turns them into ratios, once those of all micro-batches and ranks have been added.
    """
    _check(x, delta, grad, step_size, epsilon, projection)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:-1]):
        found = f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"`mask` must be bool of shape {list(x.shape[:-1])}, but is {found} instead.")
    out_dtype = out_dtype or x.dtype
    if not out_dtype.is_floating_point:
        raise ValueError(f"`out_dtype` must be floating point, but is {out_dtype} instead.")
    impl = dispatch.select(impl, x, delta if isinstance(delta, Tensor) else None, grad, out_dtype)
    if impl == "reference":
        step: dict[str, Any] = {"step_size": step_size, "epsilon": epsilon, "projection": projection}
        return reference.perturb(x, delta, grad, **step, mask=mask, out_dtype=out_dtype)
    return _Perturb.apply(x, delta, grad, (step_size, epsilon, projection), mask, out_dtype)


class _Perturb(torch.autograd.Function):
    """Identity in x with a cast; nothing flows to delta or grad."""

    @staticmethod
    def forward(
        x: Tensor,
        delta: Tensor | NoiseKey,
        grad: Tensor | None,
        step: tuple[float, float, str],
        mask: Tensor | None,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        projection = reference.PROJECTIONS.index(step[2])
        if isinstance(delta, Tensor):
            start: tuple = (delta, None, None, 0.0, 0, 0, 0)
        else:
            start = (None, delta.sample_index, delta.position, delta.std, delta.seed, delta.iteration, 0)
        return torch.ops.megatron_alum.perturb(x, *start, grad, *step[:2], projection, mask, out_dtype)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
        ctx.x_dtype = inputs[0].dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor | None) -> tuple:
        flowing = grads[0].to(ctx.x_dtype) if grads[0] is not None else None  # type: ignore[attr-defined]
        return flowing, None, None, None, None, None


def _check(
    x: Tensor, delta: Tensor | NoiseKey, grad: Tensor | None, step_size: float, epsilon: float, projection: str
) -> None:
    if projection not in reference.PROJECTIONS:
        raise ValueError(not_one_of("`projection`", projection, reference.PROJECTIONS))
    if not x.is_floating_point():
        raise ValueError(f"`x` must be floating point, but is {x.dtype} instead.")
    if not epsilon >= 0:
        raise ValueError(f"`epsilon` must be >= 0, but is {epsilon} instead.")
    if not math.isfinite(step_size):
        raise ValueError(f"`step_size` must be finite, but is {step_size} instead.")
    if not isinstance(delta, Tensor):
        tokens = delta.position.numel()
        if x.shape[:-1].numel() != tokens:
            raise ValueError(f"`x` must hold {tokens} tokens to fit the NoiseKey, but is {list(x.shape)} instead.")
    for name, tensor in (("delta", delta), ("grad", grad)):
        if isinstance(tensor, Tensor) and (tensor.shape != x.shape or tensor.device != x.device):
            found = f"{list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"`{name}` must be {list(x.shape)} on {x.device}, but is {found} instead.")
        if isinstance(tensor, Tensor) and not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be floating point, but is {tensor.dtype} instead.")
