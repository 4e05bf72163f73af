"""Tensor-parallel linear layers that are a single matrix product when the group has one rank.

megatron-core adds the bias after the product, or hands it on, because a row-parallel product must be summed over the
group first. On a group of one the bias belongs in the product: one pass over the activations less for each linear
layer (on the GPU it is the product's epilogue), forward and backward. Larger groups do as megatron-core does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor
from torch.nn import functional as F


class ColumnLinear(ColumnParallelLinear):
    """Multiplies in the dtype of its input and returns the dtype of its weight.

    In a 16-bit post-LayerNorm model the first QKV product is what reads the float32 sum of embedding and perturbation.
    """

    multiply: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(F.linear)

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[..., K] -> ([..., N / tp], bias left to the caller or None)."""
        if self.tp_group.size() > 1:
            return super().forward(input_, *args, **kwargs)
        return _multiplied(self, input_), None

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.dtype == weight.dtype:
            return super()._forward_impl(input, weight, *args, **kwargs)
        if (bias := kwargs.get("bias")) is not None:
            kwargs["bias"] = bias.to(input.dtype)
        return super()._forward_impl(input, weight.to(input.dtype), *args, **kwargs).to(weight.dtype)


class RowLinear(RowParallelLinear):
    """As megatron-core's, with the bias in the product on a group of one."""

    multiply: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(F.linear)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., K / tp] -> ([..., N], bias left to the caller or None)."""
        if self.tp_group.size() > 1:
            return super().forward(input_)
        return _multiplied(self, input_), None


def _multiplied(layer: ColumnLinear | RowLinear, input: Tensor) -> Tensor:
    """The product in the dtype of the input, answered in that of the weight."""
    weight, bias = layer.weight, layer.bias
    if input.dtype == weight.dtype:
        return layer.multiply(input, weight, bias)
    return layer.multiply(input, weight.to(input.dtype), bias.to(input.dtype)).to(weight.dtype)
