"""Losses of rows of logits: the MLM loss of the clean ones and their divergence from adversarial ones, in one pass.

    kl[n]      = KL(P||Q) + KL(Q||P), or KL(P||Q) alone         P = softmax(clean[n]), Q = softmax(adv[n])
    mlm[n]     = -log P[label[n]]
    one_way[n] = KL(P||Q)

`row_losses` is the main function; `symmetric_kl`, `kl_divergence` and `mlm_symmetric_kl` are shorthands for it without
weights. Precision is kept when clean and adversarial logits are nearly equal: reference/rows.py.

With weights, gradients are known as soon as the statistics of a row are. So where one rank holds whole rows, on a CPU
and on a GPU, they are formed in forward, while the row is in the cache or in registers: each logit is read once and
its gradient written once, over the logit with `overwrite_logits`. Backward returns them. The price is one
restriction: the sums of one call must enter the loss with the same factor. What is known beforehand (1 / count, alpha)
belongs in the weights. Elsewhere (a vocabulary split over ranks, float16, whose loss scale must be in before the
rounding, torch.compile, the reference) forward forms the statistics and backward the gradients, with whatever factor
each loss has.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.ops import dispatch, row_autograd
from megatron_alum.ops.row_autograd import common_factor, has_one_shard, increment_and_scale
from megatron_alum.reference.rows import IGNORED_LABEL

DIVERGENCES = ("symmetric", "one_way")


class RowLosses(NamedTuple):
    """Losses of rows [N], or with weights their sums, 0-dim; float32 (float64 for float64 logits)."""

    mlm: Tensor
    """MLM loss of the clean logits (with weights: weighted); 0 without labels"""
    kl: Tensor
    """divergence (with weights: weighted); 0 without adversarial logits"""
    logged_kl: Tensor
    """the divergence (with weights: weighted by `log_weight`); a constant, for logs"""
    logged_one_way: Tensor
    """KL(P||Q) with every row counted once, whatever the divergence is; a constant, for logs. It comes with the
    pass, to about 1e-7 of the log ratios"""


def row_losses(
    clean_logits: Tensor,
    adv_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    mlm_weight: Tensor | None = None,
    kl_weight: Tensor | None = None,
    log_weight: Tensor | None = None,
    divergence: str = "symmetric",
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> RowLosses:
    """Losses of each row, or their weighted sums; differentiable in both logits. Backward once; no double backward.

    clean_logits, adv_logits [N, V], or [N, V / tp] with `group` the tensor-parallel process group (rank r holds the
    columns from r * V / tp on); no adversarial logits = the MLM loss alone, at half the price. labels int64 [N] are
    global token ids below `valid_vocab_size`, checked on the CPU alone; -100 gives 0 in all losses and zero gradients.
    `valid_vocab_size` counts the global vocabulary without padding; later columns are ignored and get zero gradient, as
    are columns that are -inf on both sides. Finite logits of any size count; a divergence beyond float32 gives NaN.

    mlm_weight, kl_weight float [N], constants: the results are sums over rows, and a row of weight 0 contributes
    nothing, not even a NaN. Both sums must enter the loss with the same factor. log_weight float [N] weighs the rows of
    the two constants for logs instead; 1 by default. Without weights every row's losses are results of their own.

    Gradient of the divergence, with h = log(p / q):

    | divergence, detach_targets | to clean logits               | to adversarial logits            |
    |----------------------------|-------------------------------|----------------------------------|
    | "symmetric", True          | p - q                         | q - p                            |
    | "symmetric", False         | p (h - E_P[h]) + (p - q)      | -[q (h - E_Q[h]) + (p - q)]      |
    | "one_way", True            | 0                             | q - p                            |
    | "one_way", False           | p (h - KL)                    | q - p                            |

    `overwrite_logits=True` gives up the logits that require a gradient: it may be written over them, by the call itself
    or by backward. Raises: ValueError for arguments that do not fit, RuntimeError for labels that no column has.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"`divergence` must be symmetric or one_way, but is {divergence!r} instead.")
    one_sided = divergence == "one_way"
    options = row_autograd.row_options(
        clean_logits, adv_logits, labels, valid_vocab_size, group, detach_targets, one_sided
    )
    if overwrite_logits:
        row_autograd.refuse_overwriting(clean_logits=clean_logits, adv_logits=adv_logits)
    impl, labels = dispatch.select(impl, clean_logits), None if labels is None else labels.contiguous()
    weights = weights_of(clean_logits.shape[0], labels, adv_logits, mlm_weight, kl_weight)
    check_weight("log_weight", log_weight, clean_logits.shape[0])
    if weights is not None and _one_pass(clean_logits, adv_logits, group, impl):
        return RowLosses(
            *_OnePass.apply(clean_logits, adv_logits, labels, *weights, log_weight, options, overwrite_logits)
        )
    mlm, kl, records = row_autograd.row_losses(clean_logits, adv_logits, labels, options, group, overwrite_logits, impl)
    constants = kl.detach(), one_way_of(records, labels)
    if weights is None:
        return RowLosses(mlm, kl, *constants)
    sums = (_sum(loss, weight) for loss, weight in zip((mlm, kl), weights, strict=True))
    return RowLosses(*sums, *(logged(rows, adv_logits, log_weight) for rows in constants))


def symmetric_kl(clean_logits: Tensor, adv_logits: Tensor, **options: Any) -> Tensor:
    """KL(P||Q) + KL(Q||P) of each row [N]; options as in `row_losses`."""
    return row_losses(clean_logits, adv_logits, **options).kl


def kl_divergence(clean_logits: Tensor, adv_logits: Tensor, **options: Any) -> Tensor:
    """KL(P||Q) of each row [N]; options as in `row_losses`."""
    return row_losses(clean_logits, adv_logits, divergence="one_way", **options).kl


def mlm_symmetric_kl(clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """(MLM loss of the clean logits [N], symmetric KL [N]); options as in `row_losses`."""
    return row_losses(clean_logits, adv_logits, labels, **options)[:2]


def weights_of(
    rows: int, labels: Tensor | None, adv: Tensor | None, mlm: Tensor | None, kl: Tensor | None
) -> tuple[Tensor | None, Tensor | None] | None:
    """The row weights as constants; None where there are none at all.

    Raises: ValueError when a requested loss has no weight, or a weight has no loss or the wrong shape.
    """
    if mlm is None and kl is None:
        return None
    for name, weight, loss in (("mlm_weight", mlm, labels), ("kl_weight", kl, adv)):
        if (weight is None) != (loss is None):
            source = "labels" if name == "mlm_weight" else "adversarial logits"
            found = "missing" if weight is None else "given without them"
            raise ValueError(f"`{name}` must come with {source}, but is {found} instead.")
        check_weight(name, weight, rows)
    return tuple(None if weight is None else weight.detach() for weight in (mlm, kl))  # type: ignore[return-value]


def check_weight(name: str, weight: Tensor | None, rows: int) -> None:
    """Raises: ValueError unless the weight is None or [rows]."""
    if weight is not None and weight.shape != (rows,):
        raise ValueError(f"`{name}` must have shape [{rows}], but is {list(weight.shape)} instead.")


def one_way_of(records: Tensor, labels: Tensor | None) -> Tensor:
    """KL(P||Q) [N] from records of whole rows: E_P[h]; 0 where the label is ignored."""
    one_way = records[:, 3] + records[:, 4]
    return one_way if labels is None else torch.where(labels == IGNORED_LABEL, 0.0, one_way)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """sum of weights * values over the rows whose weight is not 0 (0 * NaN would be NaN)."""
    return torch.where(weights == 0, torch.zeros_like(values), values * weights).sum()


def _sum(loss: Tensor, weight: Tensor | None) -> Tensor:
    return loss.new_zeros(()) if weight is None else weighted_sum(loss, weight.to(loss.dtype))


def logged(rows: Tensor, adv: Tensor | None, weight: Tensor | None) -> Tensor:
    """The sum of rows' divergences that goes into a log; 0 without adversarial logits."""
    if adv is None:
        return rows.new_zeros(())
    return rows.sum() if weight is None else weighted_sum(rows, weight.to(rows.dtype))


def _one_pass(clean: Tensor, adv: Tensor | None, group: dist.ProcessGroup | None, impl: str) -> bool:
    """Whether the gradients can be formed in forward; without any gradient the statistics alone are cheaper."""
    if impl == "reference" or clean.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    wanted = clean.requires_grad or (adv is not None and adv.requires_grad)
    return has_one_shard(group) and wanted and torch.is_grad_enabled()


class _OnePass(torch.autograd.Function):
    """Losses and gradients in forward; backward returns the gradients."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        clean, adv, labels, mlm_weight, kl_weight, log_weight, options, overwrite = inputs
        needed = ctx.needs_input_grad[:2]
        given = [None if w is None else w.float().contiguous() for w in (mlm_weight, kl_weight)]
        weights = given[0], clean.new_zeros(clean.shape[0], dtype=torch.float32) if given[1] is None else given[1]
        records, grads = row_autograd.fused(clean, adv, labels, weights, options, needed, overwrite)
        ctx.save_for_backward(*grads)
        ctx.overwrite, ctx.present = overwrite, [weight is not None for weight in given]
        rows = torch.ops.megatron_alum.row_losses(clean.detach(), None, records, labels, *options, False)
        sums = [_sum(loss, weight) for loss, weight in zip(rows, given, strict=True)]
        constants = [logged(x, adv, log_weight) for x in (rows[1], one_way_of(records, labels))]
        absent = [x for x, there in zip(sums, ctx.present, strict=True) if not there]
        ctx.mark_non_differentiable(*absent, *constants)
        return (*sums, *constants)

    @staticmethod
    @row_autograd.formed_in_forward
    def backward(ctx: Any, *sum_grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = common_factor(*(grad for grad, there in zip(sum_grads[:2], ctx.present, strict=True) if there))
        grads = ctx.saved_tensors
        return (*(increment_and_scale(grad, factor, in_place=ctx.overwrite) for grad in grads), *[None] * 6)
