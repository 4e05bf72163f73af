"""Weight gradients added to the gradient buffer where they are computed, for training on the CPU.

megatron-core's data-parallel wrapper takes each gradient from autograd and adds it to the parameter's float32 buffer.
For the word table, which is used two or three times in a step, that means three tensors of V x H that are allocated,
filled, read and freed. Here the product is added to the buffer instead (Megatron's own gradient accumulation fusion
needs a GPU and apex), and a lookup touches only the rows of its tokens.
"""

import torch
from torch import Tensor


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
