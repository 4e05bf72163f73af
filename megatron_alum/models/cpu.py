"""What the network computes in another way on the CPU, because it is faster there; the results are the same.

    linear     products with the bias added in place, into large pages
    lookup     rows of a table
    both       add the gradient of their weight to the gradient buffer where it is formed

megatron-core's data-parallel wrapper takes each gradient from autograd and adds it to the parameter's float32 buffer.
For the word table, which is used two or three times in a step, that means three tensors of V x H that are allocated,
filled, read and freed. Here the product is added to the buffer instead (Megatron's own gradient accumulation fusion
needs a GPU and apex), and a lookup touches only the rows of its tokens.

`parts.py` chooses: nothing of this is part of the network on a GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from megatron_alum.models.linear import ColumnLinear, RowLinear
from megatron_alum.ops import empty_in_large_pages


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear: input [..., K] @ weight [N, K].T + bias [N] -> [..., N]; all of one dtype."""
    if bias is not None and input.dtype == torch.float32 and not torch.compiler.is_compiling():  # which has its kernels
        return _Linear.apply(input, weight, bias)
    return F.linear(input, weight, bias)


def lookup(ids: Tensor, table: Tensor) -> Tensor:
    """F.embedding: rows of table [V, H] for int64 ids [...] -> [..., H]."""
    buffer = gradient_buffer(table, torch.float32)
    if buffer is None or torch.compiler.is_compiling():
        return F.embedding(ids, table)
    return _Lookup.apply(ids, table, buffer)


class CpuColumnLinear(ColumnLinear):
    """ColumnLinear with these products."""

    multiply = staticmethod(linear)


class CpuRowLinear(RowLinear):
    """RowLinear with these products."""

    multiply = staticmethod(linear)


def accumulate_in_place(model: torch.nn.Module) -> None:
    """Let those parameters of `model` that are on the CPU and have a `main_grad` from megatron-core's wrapper take
    gradients directly.

    Only without --overlap-grad-reduce: there the wrapper must see every gradient before it starts to reduce. Every
    backward pass through such a parameter adds to its buffer, even one that needs only other gradients; freeze the
    parameters where that is not intended (`alum.frozen`).
    """
    for parameter in model.parameters():
        parameter.accumulates_in_place = not parameter.is_cuda  # type: ignore[attr-defined]


def gradient_buffer(parameter: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`main_grad` if gradients of `dtype` may be added to it; None if they go through autograd."""
    if not getattr(parameter, "accumulates_in_place", False):
        return None
    buffer: Tensor = parameter.main_grad  # type: ignore[attr-defined]
    return buffer if buffer.dtype == dtype else None


class _Linear(torch.autograd.Function):
    """float32 products with the bias added in place, while torch first copies it over the whole result.

    Measured (2 threads of an AVX-512 machine): [3440, 256] by [1024, 256] 6.2 ms against 7.4, and as fast as oneDNN's
    fused bias or faster. A decoder's logits are new memory from the system in each step, so they use large pages: 36 ms
    against 66 for [516, 256] by [30592, 256]. The gradient of the weight goes straight into the gradient buffer where
    there is one.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.buffer = gradient_buffer(weight, torch.float32)
        out = empty_in_large_pages((*input.shape[:-1], weight.shape[0]), input)
        torch.mm(_rows(input), weight.t(), out=_rows(out)).add_(bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        need_input, need_weight, need_bias = ctx.needs_input_grad
        rows = _rows(gradients[0])
        to_input = torch.mm(rows, weight).view_as(input) if need_input else None
        to_bias = rows.sum(0) if need_bias else None
        if not need_weight:
            return to_input, None, to_bias
        flat = _rows(input)
        if ctx.buffer is None:
            return to_input, rows.t().mm(flat), to_bias
        ctx.buffer.addmm_(rows.t(), flat)
        return to_input, None, to_bias


def _rows(tensor: Tensor) -> Tensor:
    """[..., K] -> [rows, K]."""
    return tensor.reshape(-1, tensor.shape[-1])


class _Lookup(torch.autograd.Function):
    """Adds the gradients of the rows to the table's buffer: one pass over these rows, none over the table."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, buffer: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.buffer = buffer
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.buffer.index_add_(0, ids.flatten(), gradients[0].flatten(0, -2).to(ctx.buffer.dtype))
        return None, None, None
