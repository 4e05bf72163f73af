"""Gradients of weights added to the gradient buffer where they are formed, for training on the CPU.

megatron-core's data-parallel wrapper takes each gradient from autograd and adds it to the parameter's float32 buffer.
For the word table, which has two users or three in a step, that is three tensors of V x H that are allocated, filled,
read and dropped. Here the product is added to the buffer instead (Megatron's own gradient accumulation fusion, for
which it needs a GPU and apex), and a lookup touches only the rows of its words.
"""

import torch
from torch import Tensor


def accumulate_in_place(model: torch.nn.Module) -> None:
    """Let the parameters of `model` on the CPU, which megatron-core's wrapper has given a `main_grad`, take gradients
    directly.

    Only without --overlap-grad-reduce: the wrapper then wants to see every gradient before it starts to reduce. Every
    backward pass through such a parameter adds to its buffer, also one that is asked for other gradients only; freeze
    the parameters where that is not meant (`alum.frozen`).
    """
    for parameter in model.parameters():
        parameter.accumulates_in_place = not parameter.is_cuda  # type: ignore[attr-defined]


def gradient_buffer(parameter: Tensor, dtype: torch.dtype) -> Tensor | None:
    """`main_grad` if gradients of `dtype` may be added to it; None where they go through autograd."""
    if not getattr(parameter, "accumulates_in_place", False):
        return None
    buffer: Tensor = parameter.main_grad  # type: ignore[attr-defined]
    return buffer if buffer.dtype == dtype else None
