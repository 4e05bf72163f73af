"""One projected ascent step of the perturbation, fused with the sum x + delta and its statistics (the tile role).

Formulas of the three projections: megatron_alum/ops/reference/tiles.py. The step and the projection are the same
function for every implementation, in float32; the statistics stay on the device, so nothing here waits for the GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_alum.ops import dispatch
from megatron_alum.ops.noise import NoiseKey, gaussian_noise
from megatron_alum.ops.reference import tiles as reference


class PerturbationStatistics(NamedTuple):
    """0-dim float32 device tensors over the tokens inside the mask that this rank holds."""

    effective_perturbation: Tensor
    """sum |cast(x + delta') - cast(x)| / sum |delta'|: 1 when the model's dtype sees all of it, 0 when none; NaN for
    0/0."""
    ascent_ratio: Tensor
    """||eta g|| / ||delta|| in the Euclidean norm, before projection; 0 without a gradient."""
    nonfinite_tokens: Tensor
    """Tokens whose gradient held a NaN or an infinity; they kept their delta."""
    delta_norm: Tensor
    """Euclidean norm of delta'."""


def ascend_and_project(
    delta: Tensor, grad: Tensor, *, step_size: float, epsilon: float, projection: str = "clamp", impl: str = "auto"
) -> Tensor:
    """delta' = project(delta + step_size * grad), float32 [..., H]; the last dimension is one token's channels.

    projection: "clamp" | "normalize" | "normalized_gradient". A token with a non-finite gradient keeps its delta.
    """
    _check(delta, grad, None, step_size, epsilon, projection)
    if dispatch.select(impl, delta, grad) == "reference":
        return reference.ascend_and_project(delta.detach(), grad.detach(), step_size, epsilon, projection)
    index = reference.PROJECTIONS.index(projection)
    return torch.ops.megatron_alum.ascend_and_project(delta.detach(), grad.detach(), step_size, epsilon, index)


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
) -> tuple[Tensor, Tensor, PerturbationStatistics]:
    """(x + delta' in `out_dtype`, delta' in float32, statistics), in one pass over the tokens.

    x [S, B, H], or [B, S, H] as NoiseKey.batch_first says; delta of the same shape, or a NoiseKey: noise generated in
    the kernel. grad None skips the step (delta' = delta). mask bool of x's leading shape, True = may be perturbed;
    elsewhere delta' = 0. out_dtype is x's by default. The gradient of x + delta' flows to x alone, unchanged but for
    its dtype.
    """
    _check(x, delta, grad, step_size, epsilon, projection)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:-1]):
        found = f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"`mask` must be bool of shape {list(x.shape[:-1])}, but is {found} instead.")
    out_dtype = out_dtype or x.dtype
    impl = dispatch.select(impl, x, delta if isinstance(delta, Tensor) else None, grad, out_dtype)
    x_adv, moved, sums = _Perturb.apply(x, delta, grad, (step_size, epsilon, projection), mask, out_dtype, impl)
    return x_adv, moved, statistics(sums)


def statistics(sums: Tensor) -> PerturbationStatistics:
    """From the six sums of the tile role; sums of several ranks may be added first."""
    l1, moved, square, step_square, start_square, nonfinite = sums.unbind()
    ratio = torch.where(step_square > 0, (step_square / start_square).sqrt(), torch.zeros_like(step_square))
    return PerturbationStatistics(moved / l1, ratio, nonfinite, square.sqrt())


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
        impl: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if impl == "reference":
            start = _materialise(delta, x) if not isinstance(delta, Tensor) else delta
            return reference.perturb(x, start, grad, *step, mask, out_dtype)
        projection = reference.PROJECTIONS.index(step[2])
        if not isinstance(delta, Tensor):
            noise = (delta.sample_index, delta.position, delta.std, delta.seed, delta.iteration, delta.batch_first)
            return torch.ops.megatron_alum.perturb_noise(x, *noise, grad, *step[:2], projection, mask, out_dtype)
        return torch.ops.megatron_alum.perturb(x, delta, grad, *step[:2], projection, mask, out_dtype)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
        ctx.x_dtype = inputs[0].dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor | None) -> tuple:
        flowing = grads[0].to(ctx.x_dtype) if grads[0] is not None else None  # type: ignore[attr-defined]
        return flowing, None, None, None, None, None, None


def _materialise(key: NoiseKey, x: Tensor) -> Tensor:
    return gaussian_noise(
        key.sample_index,
        key.position,
        x.shape[-1],
        std=key.std,
        key=(key.seed, key.iteration),
        batch_first=key.batch_first,
        device=x.device,
        impl="reference",
    )


def _check(
    x: Tensor, delta: Tensor | NoiseKey, grad: Tensor | None, step_size: float, epsilon: float, projection: str
) -> None:
    if projection not in reference.PROJECTIONS:
        raise ValueError(
            f"`projection` must be one of {', '.join(reference.PROJECTIONS)}, but is {projection!r} instead."
        )
    if not epsilon >= 0:
        raise ValueError(f"`epsilon` must be >= 0, but is {epsilon} instead.")
    if not isinstance(delta, Tensor):
        tokens = (delta.position.numel(), delta.sample_index.numel())
        expected = tokens[::-1] if delta.batch_first else tokens
        if tuple(x.shape[:-1]) != expected:
            raise ValueError(f"`x` must be {[*expected, 'H']} to fit the NoiseKey, but is {list(x.shape)} instead.")
    for name, tensor in (("delta", delta), ("grad", grad)):
        if isinstance(tensor, Tensor) and (tensor.shape != x.shape or tensor.device != x.device):
            found = f"{list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"`{name}` must be {list(x.shape)} on {x.device}, but is {found} instead.")
