"""How the losses of rows are computed and differentiated, for the public functions in rows.py and rows_from_hidden.py.

The same for every implementation and at tensor-parallel size 1 (one shard):
    row_statistics   6 floats per row (7 with labels) of this shard           reads the logits once
    all-gather       of those floats, the only collective; exact merge
    row_losses       the two losses from the merged floats; autograd starts here
    row_gradients    in backward: p and q recomputed from logits and floats; no collective, nothing kept of size [N, V]
Where one rank holds whole rows, row_gradients forms the statistics as well (`fused`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
from torch import Tensor

from megatron_alum.reference import rows as reference
from megatron_alum.reference.rows import RowOptions


def row_options(
    clean: Tensor,
    adv: Tensor | None,
    labels: Tensor | None,
    valid_vocab_size: int | None,
    group: dist.ProcessGroup | None,
    detach_targets: bool,
    one_sided: bool,
) -> RowOptions:
    """Checks the arguments and works out which columns of the vocabulary these are."""
    if adv is None and labels is None:
        raise ValueError("`adv_logits` or `labels` must be given, but neither is.")
    adv = clean if adv is None else adv
    if clean.ndim != 2 or adv.shape != clean.shape or adv.dtype != clean.dtype or adv.device != clean.device:
        found = f"{clean.dtype} {list(clean.shape)} on {clean.device} and {adv.dtype} {list(adv.shape)} on {adv.device}"
        raise ValueError(f"the logits must be two [N, V] tensors alike, but are {found} instead.")
    if not clean.is_floating_point() or clean.layout != torch.strided:
        raise ValueError(f"the logits must be dense and floating point, but are {clean.dtype} {clean.layout} instead.")
    if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in (clean, adv)):
        raise RuntimeError("the losses of rows have no forward-mode derivative; write them with torch.log_softmax.")
    rows, columns = clean.shape
    return shard_options(rows, columns, labels, valid_vocab_size, group, detach_targets, one_sided)


def shard_options(
    rows: int,
    columns: int,
    labels: Tensor | None,
    valid_vocab_size: int | None,
    group: dist.ProcessGroup | None,
    detach_targets: bool,
    one_sided: bool,
) -> RowOptions:
    """Which columns of the global vocabulary the `columns` of this rank are, and whether the labels of the rows fit."""
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    total = columns * size
    valid = total if valid_vocab_size is None else valid_vocab_size
    if not 0 < valid <= total:
        raise ValueError(f"`valid_vocab_size` must be in [1, {total}], but is {valid} instead.")
    if labels is not None:
        _check_labels(labels, rows, valid)
    first = rank * columns
    return RowOptions(first, min(max(valid - first, 0), columns), one_sided, detach_targets)


def _check_labels(labels: Tensor, rows: int, valid: int) -> None:
    """Their values are looked at on the CPU alone: nobody waits for a GPU."""
    if labels.dtype != torch.int64 or labels.shape != (rows,):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"`labels` must be int64 of shape [{rows}], but is {found} instead.")
    if labels.device.type != "cpu" or rows == 0:
        return
    if not torch.compiler.is_compiling():
        least, most = labels.aminmax()  # half the time of the comparisons below
        if 0 <= least and most < valid:
            return
    known = (labels >= 0) & (labels < valid) | (labels == reference.IGNORED_LABEL)
    torch._assert_async(known.all(), f"`labels` must be {reference.IGNORED_LABEL} or below {valid}, but are not.")


def has_one_shard(group: dist.ProcessGroup | None) -> bool:
    """Whether this rank holds whole rows."""
    return group is None or dist.get_world_size(group) == 1


def row_losses(
    clean: Tensor,
    adv: Tensor | None,
    labels: Tensor | None,
    options: RowOptions,
    group: dist.ProcessGroup | None,
    overwrite: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(MLM loss [N], divergence [N], records): statistics now, gradients in backward."""
    detached = None if adv is None else adv.detach()
    records = local_statistics(clean.detach(), detached, labels, options, impl)
    records = merge_over_group(records, options, group, impl)
    if not torch.is_grad_enabled() or not (clean.requires_grad or (adv is not None and adv.requires_grad)):
        return (*reference.row_losses(records, labels), records)  # nothing to differentiate: no operator in between
    if impl == "reference" or not torch.compiler.is_compiling():  # the operator costs more than the kernel of few rows
        return (*_Losses.apply(clean, adv, records, labels, options, overwrite, impl), records)
    return (*torch.ops.megatron_alum.row_losses(clean, adv, records, labels, *options, overwrite), records)


def fused(
    clean: Tensor,
    adv: Tensor | None,
    labels: Tensor | None,
    weights: tuple[Tensor | None, Tensor],
    options: RowOptions,
    needed: tuple[bool, ...],
    overwrite: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """(records, gradients to (clean, adv) of the weighted losses), in one pass over rows of one shard."""
    call = (clean, adv, None, labels, *weights, *options, *needed)
    if overwrite:
        records = torch.ops.megatron_alum.row_gradients_(*call)
        return records, overwritten((clean, adv), needed)
    records, *grads = torch.ops.megatron_alum.row_gradients(*call)
    return records, [grad if need else None for grad, need in zip(grads, needed, strict=True)]


def common_factor(first: Tensor, *others: Tensor) -> Tensor:
    """The factor with which the sums of one call enter the loss: the same for all, or NaN for all."""
    for other in others:
        torch._assert_async(
            (first == other) | (first.isnan() & other.isnan()),
            "both sums must enter the loss with the same factor: use the row weights",
        )
    return first


def increment_and_scale(grad: Tensor | None, factor: Tensor, *, in_place: bool) -> Tensor | None:
    """A gradient that forward has formed, times the factor of its loss.

    On the CPU the factor is read here. On a GPU the kernel reads it, so that the host need not wait, and multiplies in
    place unless it is 1; the version counter then tells autograd that a second backward would find other numbers.
    """
    if grad is None:
        return None
    if grad.device.type == "cpu" and not torch.compiler.is_compiling():
        if factor == 1:
            return grad
        return grad.mul_(factor) if in_place else grad * factor.to(grad.dtype)
    if grad.device.type != "cuda" or torch.compiler.is_compiling():
        return grad * factor.to(grad.dtype)
    torch.ops.megatron_alum.scale_(grad, factor.float())
    torch.autograd.graph.increment_version(grad)
    return grad


def refuse_overwriting(**logits: Tensor | None) -> None:
    """Raises where writing over logits that need a gradient would be visible elsewhere or is not possible."""
    for name, tensor in logits.items():
        if tensor is None or not (tensor.requires_grad and torch.is_grad_enabled()):
            continue
        kind = "a leaf" if tensor.is_leaf else "a view" if tensor._base is not None else None
        if kind is not None:
            raise ValueError(
                f"`{name}` must own its memory to be overwritten, but is {kind} instead. Use overwrite_logits=False."
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"`{name}` must be contiguous to be overwritten, but has strides {tensor.stride()} instead."
            )


def overwritten(logits: tuple[Tensor, Tensor | None], needed: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients that a kernel has written over the logits that need them.

    The kernel does not touch the version counters, by which autograd notices that something it still needs (an output
    that its producer saved, or these logits in a second backward) has been overwritten, so they are incremented here.
    """
    for tensor, need in zip(logits, needed, strict=True):
        if need and tensor is not None:
            torch.autograd.graph.increment_version(tensor)
    return [
        None if tensor is None or not need else tensor.detach() for tensor, need in zip(logits, needed, strict=True)
    ]


def local_statistics(
    clean: Tensor, adv: Tensor | None, labels: Tensor | None, options: RowOptions, impl: str
) -> Tensor:
    """Records [N, 6 or 7] of this shard."""
    if impl == "reference":
        return reference.row_statistics(clean, clean if adv is None else adv, labels, options)
    first, valid, one_sided, _ = options
    return torch.ops.megatron_alum.row_statistics(clean, adv, labels, first, valid, one_sided)


def merge_over_group(records: Tensor, options: RowOptions, group: dist.ProcessGroup | None, impl: str) -> Tensor:
    """Records of whole rows [N, 6 or 7]: the one collective, then the exact merge."""
    if group is None or has_one_shard(group):
        return records
    size = dist.get_world_size(group)
    gathered = torch.empty((size, *records.shape), dtype=records.dtype, device=records.device)
    dist.all_gather_into_tensor(gathered.view(-1, records.shape[-1]), records, group=group)
    if impl == "reference":
        return reference.merge_statistics(gathered, options.one_sided)
    return torch.ops.megatron_alum.merge_statistics(gathered, options.one_sided)


class GradientCall(NamedTuple):
    """How backward must call the row gradients; what `setup_context` remembers besides tensors."""

    options: RowOptions
    overwrite: bool
    impl: str


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Shared by the autograd.Function and the operator of torch.compile; inputs as in `_Losses.forward`, where the
    operator has the four options one by one and no `impl`."""
    clean, adv, records, labels, *rest = inputs
    ctx.save_for_backward(clean, adv, records, labels)
    ctx.call = GradientCall(*rest) if len(rest) == 3 else GradientCall(RowOptions(*rest[:4]), rest[4], "kernel")


def backward(ctx: Any, mlm_grad: Tensor | None, kl_grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (clean, adv); None for one that is not needed."""
    clean, adv, records, labels = ctx.saved_tensors
    options, overwrite, impl = ctx.call
    needed = ctx.needs_input_grad[:2]
    kl_grad = torch.zeros_like(records[:, 0]) if kl_grad is None or adv is None else kl_grad
    grads: Any
    if impl == "reference":
        other = clean if adv is None else adv
        grads = _ReferenceGradients.apply(clean, other, records, labels, mlm_grad, kl_grad, options)
        if overwrite:
            grads = tuple(x.copy_(g) if n else g for x, g, n in zip((clean, adv), grads, needed, strict=True))
    elif overwrite:
        torch.ops.megatron_alum.row_gradients_(clean, adv, records, labels, mlm_grad, kl_grad, *options, *needed)
        grads = overwritten((clean, adv), needed)
    else:
        arguments = (clean, adv, records, labels, mlm_grad, kl_grad, *options, *needed)
        _, *grads = torch.ops.megatron_alum.row_gradients(*arguments)
    return (grads[0] if needed[0] else None), (grads[1] if needed[1] else None)


def refuse_double_backward(*_: Any) -> None:
    """Stands in for the derivative of the gradients."""
    raise RuntimeError("symmetric_kl has no double backward; write the divergence with torch.log_softmax for that.")


def formed_in_forward(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Marks the backward of a function whose gradients are ready: to differentiate them again raises. torch's
    `once_differentiable` lets them pass for constants where the loss has a constant factor.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *sum_grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            grads = backward(ctx, *sum_grads)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return grads
        return _Final.apply(*(None if grad is None else grad.detach().requires_grad_() for grad in grads))

    return wrapped


class _Final(torch.autograd.Function):
    """The gradients as they are, opaque to autograd."""

    @staticmethod
    def forward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return grads

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        refuse_double_backward()


class _Losses(torch.autograd.Function):
    """Losses from merged records; the logits are inputs so that their gradients start here. `forward` takes the context
    itself: with a separate `setup_context` torch binds the signature at every call, which costs more than few rows do.
    """

    @staticmethod
    def forward(
        ctx: Any,
        clean: Tensor,
        adv: Tensor | None,
        records: Tensor,
        labels: Tensor | None,
        options: RowOptions,
        overwrite: bool,
        impl: str,
    ) -> tuple[Tensor, Tensor]:
        losses = reference.row_losses(records, labels)
        setup_context(ctx, (clean, adv, records, labels, options, overwrite, impl), losses)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*backward(ctx, *grads), *[None] * 5)


class _ReferenceGradients(torch.autograd.Function):
    """The gradient formula, opaque to autograd."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        return reference.row_gradients(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        refuse_double_backward()
