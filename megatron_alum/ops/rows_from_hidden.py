"""Losses straight from hidden states: the vocabulary projection and the losses, chunk by chunk of rows.

Never more than `chunk_rows` rows of clean logits and as many adversarial ones exist, in one piece of memory, so that
every matrix product serves both. The gradients to hidden states, weight and bias are computed in the same loop, right
after the losses of a chunk, while its logits are still there; backward only scales them. A chunk costs one product
forward and, where they are needed, one to the hidden states and one to the weight. Hence one restriction: all sums of a
call must enter the loss with the same factor (loss scaling included), so anything that distinguishes them, such as
alpha, belongs in the row weights. Backward asserts this. With float16 the loss scale belongs there, too, because the
gradients are rounded in forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.ops import dispatch, row_autograd
from megatron_alum.ops.row_autograd import common_factor, has_one_shard, increment_and_scale
from megatron_alum.ops.rows import DIVERGENCES, RowLosses, check_weight, logged, one_way_of, weighted_sum, weights_of
from megatron_alum.reference import rows as reference
from megatron_alum.reference.rows import RowOptions


def row_losses_from_hidden(
    clean_hidden: Tensor,
    adv_hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None = None,
    *,
    mlm_weight: Tensor | None = None,
    kl_weight: Tensor,
    log_weight: Tensor | None = None,
    chunk_rows: int,
    divergence: str = "symmetric",
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    impl: str = "auto",
) -> RowLosses:
    """The weighted sums of `row_losses`, with logits = hidden @ weight.T + bias.

    clean_hidden, adv_hidden [N, H]; weight [V, H] or its shard [V / tp, H]; bias [V] or shard or None; labels int64
    [N] or None; the row weights [N] float. One collective per chunk. The gradients to the hidden states are this
    shard's part, as those of any column-parallel layer: the caller's copy-to-tensor-parallel-region sums them. Three
    products in all where the adversarial hidden states alone need a gradient, as in the inner pass. The rest:
    `row_losses`.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"`divergence` must be symmetric or one_way, but is {divergence!r} instead.")
    if chunk_rows < 1:
        raise ValueError(f"`chunk_rows` must be >= 1, but is {chunk_rows} instead.")
    alike = clean_hidden.ndim == 2 and adv_hidden.shape == clean_hidden.shape and adv_hidden.dtype == clean_hidden.dtype
    if not alike or weight.ndim != 2 or weight.shape[1] != clean_hidden.shape[1]:
        found = ", ".join(f"{x.dtype} {list(x.shape)}" for x in (clean_hidden, adv_hidden, weight))
        raise ValueError(f"hidden states must be two [N, H] of one dtype and `weight` [V, H], but are {found} instead.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"`bias` must have shape [{weight.shape[0]}], but is {list(bias.shape)} instead.")
    rows = clean_hidden.shape[0]
    options = row_autograd.shard_options(
        rows, weight.shape[0], labels, valid_vocab_size, group, detach_targets, divergence == "one_way"
    )
    weights = weights_of(rows, labels, adv_hidden, mlm_weight, kl_weight)
    assert weights is not None
    labels = None if labels is None else labels.contiguous()
    dtype = reference.working_dtype(clean_hidden)
    check_weight("log_weight", log_weight, rows)
    constants = tuple(None if w is None else w.to(dtype).contiguous() for w in (*weights, log_weight))
    call = _Chunks(options, group, dispatch.select(impl, clean_hidden), chunk_rows, torch.is_grad_enabled())
    return RowLosses(*_ChunkedHead.apply(clean_hidden, adv_hidden, weight, bias, labels, constants, call))


def mlm_symmetric_kl_from_hidden(
    clean_hidden: Tensor,
    adv_hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    mlm_row_weight: Tensor,
    kl_row_weight: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(sum of the weighted MLM losses, of the weighted symmetric KL), 0-dim; options of `row_losses_from_hidden`."""
    tensors = clean_hidden, adv_hidden, weight, bias, labels
    return row_losses_from_hidden(*tensors, mlm_weight=mlm_row_weight, kl_weight=kl_row_weight, **options)[:2]


@dataclass(frozen=True)
class _Chunks:
    """How the rows of a chunk get their records and gradients."""

    options: RowOptions
    group: dist.ProcessGroup | None
    impl: str
    rows: int
    differentiable: bool

    def statistics(self, a: Tensor, b: Tensor, labels: Tensor | None) -> Tensor:
        """Records of whole rows [n, 6 or 7]."""
        records = row_autograd.local_statistics(a, b, labels, self.options, self.impl)
        return row_autograd.merge_over_group(records, self.options, self.group, self.impl)

    def statistics_and_gradients(
        self,
        a: Tensor,
        b: Tensor,
        labels: Tensor | None,
        weights: tuple[Tensor | None, Tensor],
        needed: tuple[bool, bool],
    ) -> Tensor:
        """Records; the gradients that are needed take the place of the logits a and b, which nothing reads again."""
        fused = self.impl != "reference" and has_one_shard(self.group)
        records = None if fused else self.statistics(a, b, labels)
        if records is not None and self.impl == "reference":
            for logits, grad in zip(
                (a, b), reference.row_gradients(a, b, records, labels, *weights, self.options), strict=True
            ):
                logits.copy_(grad)
            return records
        call = a, b, records, labels, *weights, *self.options, *needed
        found = torch.ops.megatron_alum.row_gradients_(*call)
        return found if records is None else records


class _Accumulator:
    """The four gradients, filled chunk by chunk; None where none is asked for."""

    def __init__(self, tensors: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> None:
        dtypes = [None if x is None else reference.working_dtype(x) for x in tensors]
        self.clean, self.adv = (
            torch.empty_like(x) if n and x is not None else None for x, n in zip(tensors[:2], needed[:2], strict=True)
        )
        self.weight, self.bias = (
            torch.zeros_like(x, dtype=d) if n and x is not None else None
            for x, d, n in zip(tensors[2:], dtypes[2:], needed[2:], strict=True)
        )
        of_decoder = self.weight is not None or self.bias is not None
        self.of_logits = self.clean is not None or of_decoder, self.adv is not None or of_decoder

    def add(self, part: slice, hidden: Tensor, weight: Tensor, grads: Tensor) -> None:
        """Takes the gradients of one chunk's logits [2 n, V], clean above adversarial, as are hidden [2 n, H]."""
        if self.weight is not None:
            _add_product(self.weight, grads.T, hidden)
        if self.bias is not None:
            self.bias += grads.sum(0, dtype=self.bias.dtype)
        if self.clean is not None and self.adv is not None:
            self.clean[part], self.adv[part] = (grads @ weight).chunk(2)
        else:
            for target, grad in zip((self.clean, self.adv), grads.chunk(2), strict=True):
                if target is not None:
                    torch.mm(grad, weight, out=target[part])


class _ChunkedHead(torch.autograd.Function):
    """Losses and gradients in forward; backward scales."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        clean, adv, weight, bias, labels, row_weights, chunks = inputs
        needed = tuple(chunks.differentiable and need for need in ctx.needs_input_grad[:4])
        gradients = _Accumulator(inputs[:4], needed)
        sums = torch.zeros(4, dtype=reference.working_dtype(clean), device=clean.device)
        memory = clean.new_empty(2 * min(chunks.rows, clean.shape[0]), weight.shape[0])
        for start in range(0, clean.shape[0], chunks.rows):
            part = slice(start, start + chunks.rows)
            hidden = torch.cat((clean[part], adv[part]))
            logits = _project(hidden, weight, bias, memory[: hidden.shape[0]])
            rows = *logits.chunk(2), None if labels is None else labels[part]
            mlm_weight, kl_weight, log_weight = (None if w is None else w[part] for w in row_weights)
            assert kl_weight is not None
            weights = mlm_weight, kl_weight
            if any(needed):
                records = chunks.statistics_and_gradients(*rows, weights, gradients.of_logits)
                gradients.add(part, hidden, weight, logits)
            else:
                records = chunks.statistics(*rows)
            sums += _sums_of(records, rows[2], weights, log_weight)
        ctx.save_for_backward(gradients.clean, gradients.adv, gradients.weight, gradients.bias)
        ctx.dtypes, ctx.has_mlm = [None if x is None else x.dtype for x in inputs[:4]], row_weights[0] is not None
        mlm, kl, *constants = sums.unbind()
        ctx.mark_non_differentiable(*constants, *([] if ctx.has_mlm else [mlm]))
        return mlm, kl, *constants

    @staticmethod
    @row_autograd.formed_in_forward
    def backward(ctx: Any, *sum_grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = common_factor(*sum_grads[0 if ctx.has_mlm else 1 : 2])
        scaled = (increment_and_scale(grad, factor, in_place=False) for grad in ctx.saved_tensors)
        grads = (None if x is None else x.to(dtype) for x, dtype in zip(scaled, ctx.dtypes, strict=True))
        return (*grads, None, None, None)


def _sums_of(
    records: Tensor, labels: Tensor | None, weights: tuple[Tensor | None, Tensor], log_weight: Tensor | None
) -> Tensor:
    """The four sums of `RowLosses` over the rows of a chunk."""
    mlm, kl = reference.row_losses(records, labels)
    of_labels = mlm.new_zeros(()) if weights[0] is None else weighted_sum(mlm, weights[0])
    constants = (logged(rows, rows, log_weight) for rows in (kl, one_way_of(records, labels)))
    return torch.stack([of_labels, weighted_sum(kl, weights[1]), *constants])


def _project(states: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Logits of the hidden states, in memory that the next chunk reuses: fresh pages would cost more than the
    losses."""
    return torch.mm(states, weight.T, out=out) if bias is None else torch.addmm(bias, states, weight.T, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, accumulated in total's dtype."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
