"""Weighted sums of the row losses: what a training step asks for, where the gradients can be had in one pass.

    sum_n row_weight[n] * loss[n]

Once the weights are known, the gradients are known as soon as the statistics of a row are. So on an unsharded CPU row
they are formed in forward, from the same weights, while the row is in the cache: each logit is read once and its
gradient written once, over the logit with `overwrite_logits`. Backward hands them out. The price is one restriction,
the chunked head's too: the sums of one call must enter the loss with the same factor, and a factor other than 1 costs
another pass; what is known beforehand (1 / count, alpha) belongs into the row weights.

Everywhere else (a GPU, a vocabulary split over ranks, float16, whose loss scale must be in before the rounding,
torch.compile, the reference) the same doors add up the losses of divergence.py, whose backward knows all factors. A row
of weight 0 contributes nothing, not even a NaN.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.ops import dispatch, divergence
from megatron_alum.reference.rows import RowOptions


def weighted_kl(
    clean_logits: Tensor,
    adv_logits: Tensor,
    *,
    row_weight: Tensor,
    symmetric: bool = True,
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> Tensor:
    """sum_n row_weight[n] * kl[n], 0-dim, with the divergence of `symmetric_kl` or of `kl_divergence`.

    row_weight float [N], a constant. `overwrite_logits=True` gives up the logits that require a gradient: the call
    itself may write their gradients over them. Everything else as in `symmetric_kl`.
    """
    checked = clean_logits, adv_logits, None, valid_vocab_size, group, detach_targets
    options = divergence.row_options(*checked, one_sided=not symmetric)
    return _sums(clean_logits, adv_logits, None, (None, row_weight), options, group, overwrite_logits, impl)[1]


def weighted_mlm_symmetric_kl(
    clean_logits: Tensor,
    adv_logits: Tensor,
    labels: Tensor,
    *,
    mlm_row_weight: Tensor,
    kl_row_weight: Tensor,
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(sum_n mlm_row_weight[n] * mlm[n], sum_n kl_row_weight[n] * kl[n]), 0-dim, of `mlm_symmetric_kl`.

    Both must enter the loss with the same factor. Otherwise as `weighted_kl`.
    """
    options = divergence.row_options(clean_logits, adv_logits, labels, valid_vocab_size, group, detach_targets)
    weights = mlm_row_weight, kl_row_weight
    return _sums(clean_logits, adv_logits, labels, weights, options, group, overwrite_logits, impl)


def weighted_mlm(
    logits: Tensor,
    labels: Tensor,
    *,
    row_weight: Tensor,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> Tensor:
    """sum_n row_weight[n] * mlm[n], 0-dim: the MLM loss of one set of logits, with no divergence to pay for."""
    options = divergence.row_options(logits, logits, labels, valid_vocab_size, group, detach_targets=True)
    return _sums(logits, None, labels, (row_weight, None), options, group, overwrite_logits, impl)[0]


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """sum of weights * values over the rows whose weight is not 0 (0 * NaN would be NaN)."""
    return torch.where(weights == 0, torch.zeros_like(values), values * weights).sum()


def check_row_weight(name: str, weight: Tensor, rows: int) -> None:
    """Raises: ValueError unless `weight` is [rows]."""
    if weight.shape != (rows,):
        raise ValueError(f"{name} must have shape [{rows}], but is {list(weight.shape)} instead.")


def _sums(
    clean: Tensor,
    adv: Tensor | None,
    labels: Tensor | None,
    weights: tuple[Tensor | None, Tensor | None],
    options: RowOptions,
    group: dist.ProcessGroup | None,
    overwrite: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(MLM sum, KL sum); no adversarial logits, no labels or no weight = that sum is 0."""
    for name, weight in zip(("MLM", "KL"), weights, strict=True):
        if weight is not None:
            check_row_weight(f"the {name} row weight", weight, clean.shape[0])
    impl, labels = dispatch.select(impl, clean), None if labels is None else labels.contiguous()
    if _one_pass(clean, adv, group, impl):
        if overwrite:
            divergence.refuse_overwriting(clean_logits=clean, **({} if adv is None else {"adv_logits": adv}))
        constants = (None if w is None else w.detach().float().contiguous() for w in weights)
        return _OnePass.apply(clean, adv, labels, *constants, options, overwrite)
    other = clean.detach() if adv is None else adv
    losses = divergence.row_losses(clean, other, labels, options, group, overwrite, impl)
    mlm, kl = (
        loss.new_zeros(()) if weight is None else weighted_sum(loss, weight.detach().to(loss.dtype))
        for loss, weight in zip(losses, weights, strict=True)
    )
    return mlm, kl


def _one_pass(clean: Tensor, adv: Tensor | None, group: dist.ProcessGroup | None, impl: str) -> bool:
    """Whether the gradients can be formed in forward; without any gradient the statistics alone are cheaper."""
    if impl != "cpu" or clean.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    sharded = group is not None and dist.get_world_size(group) > 1
    wanted = clean.requires_grad or (adv is not None and adv.requires_grad)
    return not sharded and wanted and torch.is_grad_enabled()


class _OnePass(torch.autograd.Function):
    """Losses and gradients in forward; backward hands the gradients out."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        clean, adv, labels, mlm_weight, kl_weight, options, overwrite = inputs
        needed = ctx.needs_input_grad[:2]
        other = clean if adv is None else adv
        no_weight = clean.new_zeros(clean.shape[0], dtype=torch.float32)
        rest = labels, mlm_weight, no_weight if kl_weight is None else kl_weight, *options, *needed
        if overwrite:
            records = torch.ops.megatron_alum.row_fused_(clean, adv, *rest)
            grads = divergence.overwritten((clean, adv), needed)
        else:
            records, *grads = torch.ops.megatron_alum.row_fused(clean, other, *rest)
        ctx.save_for_backward(*(grad if need else None for grad, need in zip(grads, needed, strict=True)))
        ctx.overwrite, ctx.present = overwrite, tuple(weight is not None for weight in (mlm_weight, kl_weight))
        losses = torch.ops.megatron_alum.row_losses(clean.detach(), other.detach(), records, labels, *options, False)
        mlm, kl = (
            loss.new_zeros(()) if weight is None else weighted_sum(loss, weight)
            for loss, weight in zip(losses, (mlm_weight, kl_weight), strict=True)
        )
        ctx.mark_non_differentiable(*(x for x, there in zip((mlm, kl), ctx.present, strict=True) if not there))
        return mlm, kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *sum_grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = common_factor(*(grad for grad, there in zip(sum_grads, ctx.present, strict=True) if there))
        grads = ctx.saved_tensors
        if factor != 1:
            grads = [None if x is None else x.mul_(factor) if ctx.overwrite else x * factor for x in grads]
        return (*grads, *[None] * 5)


def common_factor(first: Tensor, *others: Tensor) -> Tensor:
    """The factor with which the sums of one call enter the loss: the same for all, or NaN for all."""
    for other in others:
        torch._assert_async(
            (first == other) | (first.isnan() & other.isnan()),
            "both sums must enter the loss with the same factor: use the row weights",
        )
    return first
