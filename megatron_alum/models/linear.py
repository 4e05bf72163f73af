"""Tensor-parallel linear layers: a single matrix product on a group of one, and traceable by torch.compile on any.

megatron-core adds the bias after the product, or hands it on, because a row-parallel product must be summed over the
group first. On a group of one the bias belongs in the product: one pass over the activations less for each linear
layer (on the GPU it is the product's epilogue), forward and backward.

Larger groups do as megatron-core does, except in compiled layers. Its collectives are asynchronous and write into
buffers that all layers share; torch.compile would end a graph at each of them. There the same sums and gathers are
torch's functional collectives, which are part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as functional
from torch.nn import functional as F


class ColumnLinear(ColumnParallelLinear):
    """Multiplies in the dtype of its input and returns the dtype of its weight.

    In a 16-bit post-LayerNorm model the first QKV product is what reads the float32 sum of embedding and perturbation.
    """

    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(F.linear)

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[..., K] -> ([..., N / tp], bias left to the caller or None)."""
        if self.tp_group.size() == 1:
            return _multiplied(self, input_, self.bias), None
        if not torch.compiler.is_compiling():
            return super().forward(input_, *args, **kwargs)
        whole = (
            functional.all_gather_tensor_autograd(input_.contiguous(), 0, self.tp_group)
            if self.sequence_parallel
            else _GradientsSummed.apply(input_, self.tp_group)
        )
        return _multiplied(self, whole, self.bias), None

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.dtype == weight.dtype:
            return super()._forward_impl(input, weight, *args, **kwargs)
        if (bias := kwargs.get("bias")) is not None:
            kwargs["bias"] = bias.to(input.dtype)
        return super()._forward_impl(input, weight.to(input.dtype), *args, **kwargs).to(weight.dtype)


class RowLinear(RowParallelLinear):
    """As megatron-core's, with the bias in the product on a group of one."""

    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(F.linear)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., K / tp] -> ([..., N], bias left to the caller or None)."""
        if self.tp_group.size() == 1:
            return _multiplied(self, input_, self.bias), None
        if not torch.compiler.is_compiling():
            return super().forward(input_)
        part = _multiplied(self, input_, None)
        summed = (
            functional.reduce_scatter_tensor_autograd(part, "sum", 0, self.tp_group)
            if self.sequence_parallel
            else _Summed.apply(part, self.tp_group)
        )
        return summed + self.bias, None


def _multiplied(layer: ColumnLinear | RowLinear, input: Tensor, bias: Tensor | None) -> Tensor:
    """The product in the dtype of the input, answered in that of the weight."""
    weight = layer.weight
    if input.dtype == weight.dtype:
        return layer.multiply(input, weight, bias)
    bias = None if bias is None else bias.to(input.dtype)
    return layer.multiply(input, weight.to(input.dtype), bias).to(weight.dtype)


class _GradientsSummed(torch.autograd.Function):
    """Every rank's own use of one tensor: the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, shared: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return functional.all_reduce(gradients[0].contiguous(), "sum", ctx.group), None


class _Summed(torch.autograd.Function):
    """The sum of the ranks' parts, of which every rank goes on to compute the same."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: ProcessGroup) -> Tensor:
        return functional.all_reduce(part.contiguous(), "sum", group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
