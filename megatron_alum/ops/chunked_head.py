"""MLM loss and symmetric KL straight from hidden states: the vocabulary projection and the losses, chunk by chunk of
rows.

Never more than `chunk_rows` rows of logits exist, twice (clean and adversarial). The gradients to hidden states,
weight and bias are computed in the same loop, right after the losses of a chunk, while its logits are still there;
backward only scales them. Hence one restriction: both sums must enter the loss with the same factor (loss scaling
included), so what tells them apart, such as alpha, belongs into the row weights. Backward asserts it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.ops import dispatch, divergence
from megatron_alum.ops.reference import rows as reference
from megatron_alum.ops.reference.rows import RowOptions
from megatron_alum.ops.weighted import check_row_weight, common_factor, weighted_sum


def mlm_symmetric_kl_from_hidden(
    clean_hidden: Tensor,
    adv_hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    mlm_row_weight: Tensor,
    kl_row_weight: Tensor,
    chunk_rows: int,
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(sum_n mlm_row_weight[n] * mlm[n], sum_n kl_row_weight[n] * kl[n]), 0-dim, with logits = hidden @ weight.T +
    bias.

    clean_hidden, adv_hidden [N, H]; weight [V, H] or its shard [V / tp, H]; bias [V] or shard or None; labels int64
    [N]; the row weights [N] float. One collective a chunk. The gradients to the hidden states are this shard's part,
    as those of any column-parallel layer: the caller's copy-to-tensor-parallel-region sums them. Everything else:
    `mlm_symmetric_kl`.
    """
    rows, width = clean_hidden.shape
    if chunk_rows < 1:
        raise ValueError(f"`chunk_rows` must be >= 1, but is {chunk_rows} instead.")
    if adv_hidden.shape != clean_hidden.shape or weight.ndim != 2 or weight.shape[1] != width:
        found = f"{list(clean_hidden.shape)}, {list(adv_hidden.shape)} and {list(weight.shape)}"
        raise ValueError(f"hidden states must be two [N, H] and `weight` [V, H], but are {found} instead.")
    check_row_weight("`mlm_row_weight`", mlm_row_weight, rows)
    check_row_weight("`kl_row_weight`", kl_row_weight, rows)
    divergence.check_labels(labels, rows)
    options = divergence.shard_options(weight.shape[0], valid_vocab_size, group, detach_targets, one_sided=False)
    impl = dispatch.select(impl, clean_hidden)
    weights = (mlm_row_weight.detach(), kl_row_weight.detach())
    how = options, chunk_rows, group, impl, torch.is_grad_enabled()
    return _ChunkedHead.apply(clean_hidden, adv_hidden, weight, bias, labels, weights, how)


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

    def add(self, part: slice, hidden: tuple[Tensor, Tensor], weight: Tensor, grads: tuple[Tensor, Tensor]) -> None:
        """Takes the gradients of one chunk's logits to hidden states, weight and bias."""
        for target, grad in zip((self.clean, self.adv), grads, strict=True):
            if target is not None:
                torch.mm(grad, weight, out=target[part])
        for grad, states in zip(grads, hidden, strict=True):
            if self.weight is not None:
                _add_product(self.weight, grad.T, states)
            if self.bias is not None:
                self.bias += grad.sum(0, dtype=self.bias.dtype)


class _ChunkedHead(torch.autograd.Function):
    """Losses and gradients in forward; backward scales."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        clean, adv, weight, bias, labels, (mlm_weight, kl_weight), how = inputs
        options, chunk_rows, group, impl, differentiable = how
        needed = tuple(differentiable and need for need in ctx.needs_input_grad[:4])
        gradients = _Accumulator(inputs[:4], needed)
        sums = torch.zeros(2, dtype=reference.working_dtype(clean), device=clean.device)
        logits = [clean.new_empty(min(chunk_rows, clean.shape[0]), weight.shape[0]) for _ in range(2)]
        for start in range(0, clean.shape[0], chunk_rows):
            part = slice(start, start + chunk_rows)
            hidden = clean[part], adv[part]
            a, b = (_project(x, weight, bias, out[: x.shape[0]]) for x, out in zip(hidden, logits, strict=True))
            row_weights = mlm_weight[part].to(sums.dtype), kl_weight[part].to(sums.dtype)
            call = a, b, labels[part], *row_weights, options, group, impl
            records = _statistics_and_gradients(*call) if any(needed) else _statistics(a, b, labels[part], *call[-3:])
            losses = reference.row_losses(records, labels[part])
            for i, (loss, row_weight) in enumerate(zip(losses, row_weights, strict=True)):
                sums[i] += weighted_sum(loss, row_weight)
            if any(needed):
                gradients.add(part, hidden, weight, (a, b))
        ctx.save_for_backward(gradients.clean, gradients.adv, gradients.weight, gradients.bias)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:4]]
        return sums[0], sums[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, mlm_grad: Tensor, kl_grad: Tensor) -> tuple[Tensor | None, ...]:
        factor = common_factor(mlm_grad, kl_grad)
        one = factor.device.type == "cpu" and bool(factor == 1)  # elsewhere looking would wait for the device
        scaled = [
            None if grad is None else (grad if one else grad * factor.to(grad.dtype)).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def _project(states: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Logits of the states in memory that the next chunk uses again: fresh pages would cost more than the losses."""
    return torch.mm(states, weight.T, out=out) if bias is None else torch.addmm(bias, states, weight.T, out=out)


def _statistics(
    a: Tensor, b: Tensor, labels: Tensor, options: RowOptions, group: dist.ProcessGroup | None, impl: str
) -> Tensor:
    records = divergence.local_statistics(a, b, labels, options, impl)
    return divergence.merge_over_group(records, options, group, impl)


def _statistics_and_gradients(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    mlm_weight: Tensor,
    kl_weight: Tensor,
    options: RowOptions,
    group: dist.ProcessGroup | None,
    impl: str,
) -> Tensor:
    """Records of the chunk; its gradients take the place of its logits a and b, which nothing reads again."""
    if impl != "reference" and (group is None or dist.get_world_size(group) == 1):
        return torch.ops.megatron_alum.row_fused_(a, b, labels, mlm_weight, kl_weight, *options, True, True)
    records = _statistics(a, b, labels, options, group, impl)
    arguments = (a, b, records, labels, mlm_weight, kl_weight)
    if impl == "reference":
        for logits, grad in zip((a, b), reference.row_gradients(*arguments, options), strict=True):
            logits.copy_(grad)
    else:
        torch.ops.megatron_alum.row_gradients_(*arguments, *options, True, True)
    return records


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, accumulated in total's dtype."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
