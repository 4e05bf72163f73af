"""Tensor-parallel linear layers that are a single matrix product when the group has one rank.

megatron-core adds the bias after the product, or hands it on, because a row-parallel product must be summed over the
group first. On a group of one the bias belongs in the product: one pass over the activations less for each linear
layer (on the GPU it is the product's epilogue), forward and backward. Larger groups do as megatron-core does.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from megatron_alum.models.accumulation import gradient_buffer
from megatron_alum.ops import empty_in_large_pages


class ColumnLinear(ColumnParallelLinear):
    """Multiplies in the dtype of its input and returns the dtype of its weight.

    In a 16-bit post-LayerNorm model the first QKV product is what reads the float32 sum of embedding and perturbation.
    """

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[..., K] -> ([..., N / tp], bias left to the caller or None)."""
        if self.tp_group.size() > 1:
            return super().forward(input_, *args, **kwargs)
        return _product(input_, self.weight, self.bias), None

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.dtype == weight.dtype:
            return super()._forward_impl(input, weight, *args, **kwargs)
        if (bias := kwargs.get("bias")) is not None:
            kwargs["bias"] = bias.to(input.dtype)
        return super()._forward_impl(input, weight.to(input.dtype), *args, **kwargs).to(weight.dtype)


class RowLinear(RowParallelLinear):
    """As megatron-core's, with the bias in the product on a group of one."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., K / tp] -> ([..., N], bias left to the caller or None)."""
        if self.tp_group.size() > 1:
            return super().forward(input_)
        return _product(input_, self.weight, self.bias), None


def linear(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """input [..., K] @ weight [N, K].T + bias [N] -> [..., N]; all of one dtype."""
    is_cpu = input.device.type == "cpu" and input.dtype == torch.float32
    if is_cpu and not torch.compiler.is_compiling():  # torch.compile chooses its own kernel
        return _CpuLinear.apply(input, weight, bias)
    return F.linear(input, weight, bias)


def _product(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear` in the dtype of the input, returned in that of the weight."""
    if input.dtype == weight.dtype:
        return linear(input, weight, bias)
    return linear(input, weight.to(input.dtype), bias.to(input.dtype)).to(weight.dtype)


class _CpuLinear(torch.autograd.Function):
    """float32 products with the bias added in place, while torch first copies it over the whole result.

    Measured (2 threads of an AVX-512 machine): [3440, 256] by [1024, 256] 6.2 ms against 7.4, and as fast as oneDNN's
    fused bias or faster. A decoder's logits are new memory from the system in each step, so they use large pages: 36 ms
    against 66 for [516, 256] by [30592, 256]. The gradient of the weight goes straight into the gradient buffer if
    there is one (accumulation.py).
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
