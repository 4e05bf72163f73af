"""LayerNorm that works with sequence parallelism and mixed precision.

megatron-core's torch wrapper refuses sequence parallelism, and torch's CPU kernel refuses float32 input with bfloat16
weights. This one marks its parameters for the gradient all-reduce that sequence parallelism needs, and computes float32
input in float32: in a 16-bit model that is the embedding sum, whose perturbation of 1e-5 a 16-bit LayerNorm would lose.
With NVIDIA's apex on CUDA its fused kernel handles the 16-bit case.
"""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.compat.detect import fused_layer_norm_function


class LayerNorm(torch.nn.LayerNorm):
    """LayerNorm over the hidden dimension, in the constructor form of a megatron-core layer spec."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused: Any) -> None:
        """`eps` is added to the variance; other arguments of the spec are ignored."""
        super().__init__(hidden_size, eps=eps)
        mark_sequence_parallel(self, config.sequence_parallel)
        self._fused = fused_layer_norm_function()

    def forward(self, input: Tensor) -> Tensor:
        """[..., H] -> [..., H] in the dtype of the parameters."""
        if input.dtype != self.weight.dtype:
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)
        if self._fused is not None and input.is_cuda:
            return self._fused(input, self.weight, self.bias, self.normalized_shape, self.eps)
        return super().forward(input)


def mark_sequence_parallel(module: torch.nn.Module, sequence_parallel: bool) -> None:
    """Tells megatron-core whether each rank sees only a part of the tokens, so that it sums gradients over ranks."""
    for parameter in module.parameters(recurse=False):
        parameter.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]
