"""Fast dropout for a model that is not ours: what a Hugging Face network asks of torch, answered by ops on a CPU.

Drawing torch's own dropout masks takes a tenth of a standard step on a CPU, and a regularised step draws three times
as many. Inside `fast_dropout()` two functions of torch.nn.functional, which torch's and Hugging Face's modules look up
at each call, are those of ops/cpu_dropout.py: the same distribution, other random numbers. Backward belongs inside,
too: there activation checkpointing runs the forward again, on the generator state of the first time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional

from megatron_alum.ops import attention_with_dropout, dropout

_torch_dropout = functional.dropout
_torch_attention = functional.scaled_dot_product_attention


@contextmanager
def fast_dropout() -> Iterator[None]:
    """Serve dropout of CPU tensors in the body; every other call, and every option these ops lack, stays torch's."""
    before = functional.dropout, functional.scaled_dot_product_attention
    _install(_dropout, _attention)
    try:
        yield
    finally:
        _install(*before)


def _install(*functions: Any) -> None:
    functional.dropout, functional.scaled_dot_product_attention = functions


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if input.device.type != "cpu" or inplace:
        return _torch_dropout(input, p, training, inplace)
    return dropout(input, p, training=training)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if query.device.type != "cpu" or dropout_p == 0.0 or is_causal or enable_gqa:
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        return _torch_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    return attention_with_dropout(query, key, value, attn_mask, dropout_p, scale=scale)
