"""Losses straight from hidden states: the vocabulary projection and the losses, chunk by chunk of rows.

Never more than `chunk_rows` rows of clean logits and as many adversarial ones exist, in one piece of memory, so that
every matrix product serves both. The gradients to hidden states, weight and bias are computed in the same loop, right
after the losses of a chunk, while its logits are still there; backward only scales them. A chunk costs one product
forward and, where they are needed, one to the hidden states and one to the weight. Hence one restriction: all sums of a
call must enter the loss with the same factor (loss scaling included), so what tells them apart, such as alpha, belongs
into the row weights. Backward asserts it. Float16 needs the loss scale there, too: the gradients are rounded in
forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.ops import dispatch, divergence
from megatron_alum.ops.weighted import check_row_weight, common_factor, weighted_sum
from megatron_alum.reference import rows as reference
from megatron_alum.reference.rows import RowOptions

Observer = Callable[[Tensor, Tensor], None]


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
    observe: Observer | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(sum_n mlm_row_weight[n] * mlm[n], sum_n kl_row_weight[n] * kl[n]), 0-dim, with logits = hidden @ weight.T +
    bias.

    clean_hidden, adv_hidden [N, H]; weight [V, H] or its shard [V / tp, H]; bias [V] or shard or None; labels int64
    [N]; the row weights [N] float. One collective a chunk. The gradients to the hidden states are this shard's part,
    as those of any column-parallel layer: the caller's copy-to-tensor-parallel-region sums them. `observe` is called
    with the clean and the adversarial logits of each chunk, in order and without a graph, before gradients take their
    place: it may read but not keep them. Everything else: `mlm_symmetric_kl`.
    """
    divergence.check_labels(labels, clean_hidden.shape[0])
    options = divergence.shard_options(weight.shape[0], valid_vocab_size, group, detach_targets, one_sided=False)
    weights = {"`mlm_row_weight`": mlm_row_weight, "`kl_row_weight`": kl_row_weight}
    losses = _RowLosses(options, group, dispatch.select(impl, clean_hidden))
    tensors = clean_hidden, adv_hidden, weight, bias
    mlm, kl = _sums(tensors, labels.contiguous(), weights, losses, chunk_rows, observe)
    return mlm, kl


def weighted_kl_from_hidden(
    clean_hidden: Tensor,
    adv_hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    row_weight: Tensor,
    chunk_rows: int,
    symmetric: bool = True,
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    impl: str = "auto",
) -> Tensor:
    """sum_n row_weight[n] * kl[n], 0-dim, with the divergence of `symmetric_kl` or of `kl_divergence`.

    For the inner pass, where the adversarial hidden states alone need a gradient: three products in all, two of them
    forward. Tensors and the rest as in `mlm_symmetric_kl_from_hidden`.
    """
    one_sided = not symmetric
    options = divergence.shard_options(weight.shape[0], valid_vocab_size, group, detach_targets, one_sided)
    losses = _RowLosses(options, group, dispatch.select(impl, clean_hidden))
    weights = {"`row_weight`": row_weight}
    return _sums((clean_hidden, adv_hidden, weight, bias), None, weights, losses, chunk_rows, None)[0]


def _sums(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    labels: Tensor | None,
    row_weights: dict[str, Tensor],
    losses: "_RowLosses",
    chunk_rows: int,
    observe: Observer | None,
) -> tuple[Tensor, ...]:
    """A sum for each of the row weights, which are those of the MLM loss and the divergence or of the latter alone."""
    clean, adv, weight, _ = tensors
    if chunk_rows < 1:
        raise ValueError(f"`chunk_rows` must be >= 1, but is {chunk_rows} instead.")
    alike = clean.ndim == 2 and adv.shape == clean.shape and adv.dtype == clean.dtype
    if not alike or weight.ndim != 2 or weight.shape[1] != clean.shape[1]:
        found = ", ".join(f"{x.dtype} {list(x.shape)}" for x in (clean, adv, weight))
        raise ValueError(f"hidden states must be two [N, H] alike and `weight` [V, H], but are {found} instead.")
    for name, row_weight in row_weights.items():
        check_row_weight(name, row_weight, clean.shape[0])
    dtype = reference.working_dtype(clean)
    constants = tuple(row_weight.detach().to(dtype) for row_weight in row_weights.values())
    call = losses, chunk_rows, observe, torch.is_grad_enabled()
    return _ChunkedHead.apply(*tensors, labels, constants, call)


@dataclass(frozen=True)
class _RowLosses:
    """Records and gradients of the rows of a chunk, by whatever implementation."""

    options: RowOptions
    group: dist.ProcessGroup | None
    impl: str

    def statistics(self, a: Tensor, b: Tensor, labels: Tensor | None) -> Tensor:
        """Records of whole rows [n, 6 or 7]."""
        records = divergence.local_statistics(a, b, labels, self.options, self.impl)
        return divergence.merge_over_group(records, self.options, self.group, self.impl)

    def statistics_and_gradients(
        self, a: Tensor, b: Tensor, labels: Tensor | None, weights: list[Tensor], needed: tuple[bool, bool]
    ) -> Tensor:
        """Records; the gradients that are needed take the place of the logits a and b, which nothing reads again."""
        mlm_weight, kl_weight = None if labels is None else weights[0], weights[-1]
        if self.impl != "reference" and (self.group is None or dist.get_world_size(self.group) == 1):
            arguments = a, b, labels, mlm_weight, kl_weight
            return torch.ops.megatron_alum.row_fused_(*arguments, *self.options, *needed)
        records = self.statistics(a, b, labels)
        call = a, b, records, labels, mlm_weight, kl_weight
        if self.impl == "reference":
            for logits, grad in zip((a, b), reference.row_gradients(*call, self.options), strict=True):
                logits.copy_(grad)
        else:
            torch.ops.megatron_alum.row_gradients_(*call, *self.options, *needed)
        return records


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
        clean, adv, weight, bias, labels, row_weights, (losses, chunk_rows, observe, differentiable) = inputs
        needed = tuple(differentiable and need for need in ctx.needs_input_grad[:4])
        gradients = _Accumulator(inputs[:4], needed)
        sums = torch.zeros(len(row_weights), dtype=reference.working_dtype(clean), device=clean.device)
        memory = clean.new_empty(2 * min(chunk_rows, clean.shape[0]), weight.shape[0])
        for start in range(0, clean.shape[0], chunk_rows):
            part = slice(start, start + chunk_rows)
            hidden = torch.cat((clean[part], adv[part]))
            logits = _project(hidden, weight, bias, memory[: hidden.shape[0]])
            a, b = logits.chunk(2)
            if observe is not None:
                observe(a, b)
            rows = a, b, None if labels is None else labels[part]
            weights = [row_weight[part] for row_weight in row_weights]
            if any(needed):
                records = losses.statistics_and_gradients(*rows, weights, gradients.of_logits)
                gradients.add(part, hidden, weight, logits)
            else:
                records = losses.statistics(*rows)
            of_rows = reference.row_losses(records, rows[2])[-len(weights) :]
            sums += torch.stack([weighted_sum(*pair) for pair in zip(of_rows, weights, strict=True)])
        ctx.save_for_backward(gradients.clean, gradients.adv, gradients.weight, gradients.bias)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:4]]
        return sums.unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *sum_grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = common_factor(*sum_grads)
        looks = factor.device.type == "cpu" and not torch.compiler.is_compiling()  # else it waits, or breaks the graph
        one = looks and bool(factor == 1)
        scaled = [
            None if grad is None else (grad if one else grad * factor.to(grad.dtype)).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def _project(states: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Logits of the states in memory that the next chunk uses again: fresh pages would cost more than the losses."""
    return torch.mm(states, weight.T, out=out) if bias is None else torch.addmm(bias, states, weight.T, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, accumulated in total's dtype."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
