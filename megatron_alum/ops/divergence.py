"""Symmetric KL of clean and adversarial logits, optionally with the MLM loss of the clean ones: one pass over the rows.

    kl[n]  = KL(P||Q) + KL(Q||P)          P = softmax(clean[n]), Q = softmax(adv[n])
    mlm[n] = -log P[label[n]]

Gradient of kl, with d = a - b for clean logits a and adversarial logits b:

| detach_targets                                  | to a                      | to b                         |
|-------------------------------------------------|---------------------------|------------------------------|
| True (each direction moves its second argument) | p - q                     | q - p                        |
| False                                           | p (d - E_P[d]) + (p - q)  | -[q (d - E_Q[d]) + (p - q)]  |

How a call runs, alike for every implementation and at tensor-parallel size 1 (one shard):
    row_statistics   6 floats a row (7 with labels) of this shard           reads the logits once
    all-gather       of those floats, the only collective; exact merge
    row_losses       the two losses from the merged floats; autograd starts here
    row_gradients    in backward: p and q again from logits and floats; no collective, nothing kept of size [N, V]
The numbers keep their digits when clean and adversarial logits are nearly equal: see reference/rows.py.
Losses are float32 for float32, bfloat16 and float16 logits, float64 for float64. Double backward is refused.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.ops import dispatch
from megatron_alum.reference import rows as reference
from megatron_alum.reference.rows import RowOptions


def symmetric_kl(
    clean_logits: Tensor,
    adv_logits: Tensor,
    *,
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> Tensor:
    """KL(P||Q) + KL(Q||P) of each row [N], differentiable in both arguments.

    clean_logits, adv_logits [N, V], or [N, V / tp] with `group` the tensor-parallel process group (rank r holds the
    columns from r * V / tp on). `valid_vocab_size` counts the global vocabulary without padding; later columns are
    ignored and get zero gradient, as are columns that are -inf on both sides. A row with NaN or infinities gives NaN,
    never 0. `overwrite_logits=True` lets backward write its gradients over the logits' memory: the caller must not
    use them again.
    """
    options = row_options(clean_logits, adv_logits, None, valid_vocab_size, group, detach_targets)
    return row_losses(clean_logits, adv_logits, None, options, group, overwrite_logits, impl)[1]


def kl_divergence(
    clean_logits: Tensor,
    adv_logits: Tensor,
    *,
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> Tensor:
    """KL(P||Q) alone [N], for the inner pass; otherwise as `symmetric_kl`.

    Gradient to adv is q - p; to clean it is 0 with `detach_targets`, else p (log(p / q) - KL).
    """
    options = row_options(clean_logits, adv_logits, None, valid_vocab_size, group, detach_targets, one_sided=True)
    return row_losses(clean_logits, adv_logits, None, options, group, overwrite_logits, impl)[1]


def mlm_symmetric_kl(
    clean_logits: Tensor,
    adv_logits: Tensor,
    labels: Tensor,
    *,
    detach_targets: bool = True,
    valid_vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    overwrite_logits: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(MLM loss of the clean logits [N], symmetric KL [N]) in one pass and one collective.

    labels int64 [N] are global token ids below `valid_vocab_size`; -100 gives 0 in both losses and zero gradients.
    Otherwise as `symmetric_kl`.
    """
    options = row_options(clean_logits, adv_logits, labels, valid_vocab_size, group, detach_targets)
    return row_losses(clean_logits, adv_logits, labels, options, group, overwrite_logits, impl)


def row_options(
    clean: Tensor,
    adv: Tensor,
    labels: Tensor | None,
    valid_vocab_size: int | None,
    group: dist.ProcessGroup | None,
    detach_targets: bool,
    one_sided: bool = False,
) -> RowOptions:
    """Checks the arguments and works out which columns of the vocabulary these are."""
    if clean.ndim != 2 or adv.shape != clean.shape or adv.dtype != clean.dtype or adv.device != clean.device:
        found = f"{clean.dtype} {list(clean.shape)} on {clean.device} and {adv.dtype} {list(adv.shape)} on {adv.device}"
        raise ValueError(f"the logits must be two [N, V] tensors alike, but are {found} instead.")
    if not clean.is_floating_point():
        raise ValueError(f"the logits must be floating point, but are {clean.dtype} instead.")
    check_labels(labels, clean.shape[0])
    return shard_options(clean.shape[1], valid_vocab_size, group, detach_targets, one_sided)


def check_labels(labels: Tensor | None, rows: int) -> None:
    """None, or int64 [rows]; the values are not read (no host sync)."""
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != (rows,)):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"`labels` must be int64 of shape [{rows}], but is {found} instead.")


def shard_options(
    columns: int, valid_vocab_size: int | None, group: dist.ProcessGroup | None, detach_targets: bool, one_sided: bool
) -> RowOptions:
    """Which columns of the global vocabulary the `columns` of this rank are."""
    rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    total = columns * size
    valid = total if valid_vocab_size is None else valid_vocab_size
    if not 0 < valid <= total:
        raise ValueError(f"`valid_vocab_size` must be in [1, {total}], but is {valid} instead.")
    first = rank * columns
    return RowOptions(first, min(max(valid - first, 0), columns), one_sided, detach_targets)


def row_losses(
    clean: Tensor,
    adv: Tensor,
    labels: Tensor | None,
    options: RowOptions,
    group: dist.ProcessGroup | None,
    overwrite: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(MLM loss [N], divergence [N]); behind all doors."""
    if overwrite:
        refuse_overwriting(clean_logits=clean, adv_logits=adv)
    impl, labels = dispatch.select(impl, clean), None if labels is None else labels.contiguous()
    records = local_statistics(clean.detach(), adv.detach(), labels, options, impl)
    records = merge_over_group(records, options, group, impl)
    if impl == "reference":
        return _ReferenceLosses.apply(clean, adv, records, labels, options, overwrite)
    return torch.ops.megatron_alum.row_losses(clean, adv, records, labels, *options, overwrite)


def refuse_overwriting(**logits: Tensor) -> None:
    """Raises where writing over logits that need a gradient would be seen by others or is not possible."""
    for name, tensor in logits.items():
        if not (tensor.requires_grad and torch.is_grad_enabled()):
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

    The kernel leaves no trace in the version counters, by which autograd notices that something it still needs (an
    output that its producer saved, or these logits in a second backward) has been overwritten: raised here.
    """
    for tensor, need in zip(logits, needed, strict=True):
        if need and tensor is not None:
            torch.autograd.graph.increment_version(tensor)
    return [
        None if tensor is None or not need else tensor.detach() for tensor, need in zip(logits, needed, strict=True)
    ]


def local_statistics(clean: Tensor, adv: Tensor, labels: Tensor | None, options: RowOptions, impl: str) -> Tensor:
    """Records [N, 6 or 7] of this shard."""
    if impl == "reference":
        return reference.row_statistics(clean, adv, labels, options)
    first, valid, one_sided, _ = options
    return torch.ops.megatron_alum.row_statistics(clean, adv, labels, first, valid, one_sided)


def merge_over_group(records: Tensor, options: RowOptions, group: dist.ProcessGroup | None, impl: str) -> Tensor:
    """Records of whole rows [N, 6 or 7]: the one collective, then the exact merge."""
    if group is None or dist.get_world_size(group) == 1:
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
    """Shared by the reference's autograd.Function and the registered operator; inputs as in
    `_ReferenceLosses.forward`."""
    clean, adv, records, labels, *rest = inputs
    options, overwrite = (rest[0], rest[1]) if len(rest) == 2 else (RowOptions(*rest[:4]), rest[4])
    ctx.save_for_backward(clean, adv, records, labels)
    ctx.call = GradientCall(options, overwrite, "reference" if len(rest) == 2 else "kernel")


def backward(ctx: Any, mlm_grad: Tensor | None, kl_grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (clean, adv); None for one that is not needed."""
    clean, adv, records, labels = ctx.saved_tensors
    options, overwrite, impl = ctx.call
    needed = ctx.needs_input_grad[:2]
    kl_grad = torch.zeros_like(records[:, 0]) if kl_grad is None else kl_grad
    if impl == "reference":
        grads = _ReferenceGradients.apply(clean, adv, records, labels, mlm_grad, kl_grad, options)
        if overwrite:
            grads = tuple(x.copy_(g) if n else g for x, g, n in zip((clean, adv), grads, needed, strict=True))
    elif overwrite:
        torch.ops.megatron_alum.row_gradients_(clean, adv, records, labels, mlm_grad, kl_grad, *options, *needed)
        grads = overwritten((clean, adv), needed)
    else:
        arguments = (clean, adv, records, labels, mlm_grad, kl_grad, *options, *needed)
        grads = torch.ops.megatron_alum.row_gradients(*arguments)
    return (grads[0] if needed[0] else None), (grads[1] if needed[1] else None)


def refuse_double_backward(*_: Any) -> None:
    """Stands in for the derivative of the gradients."""
    raise RuntimeError("symmetric_kl has no double backward; write the divergence with torch.log_softmax for that.")


class _ReferenceLosses(torch.autograd.Function):
    """Losses from merged records; the logits are inputs so that their gradients start here."""

    @staticmethod
    def forward(
        clean: Tensor, adv: Tensor, records: Tensor, labels: Tensor | None, options: RowOptions, overwrite: bool
    ) -> tuple[Tensor, Tensor]:
        return reference.row_losses(records, labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*backward(ctx, *grads), None, None, None, None)


class _ReferenceGradients(torch.autograd.Function):
    """The gradient formula, opaque to autograd."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        return reference.row_gradients(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        refuse_double_backward()
