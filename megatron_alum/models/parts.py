"""The parts that a network is built from, chosen once by the device: plain torch on a GPU, `cpu.py` on the CPU."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.models import cpu
from megatron_alum.models.attention import AttentionName, attention_backend
from megatron_alum.models.linear import ColumnLinear, RowLinear


class Parts(NamedTuple):
    """The chosen parts."""

    column: type[ColumnLinear]
    """tensor-parallel layer split by its output"""
    row: type[RowLinear]
    """tensor-parallel layer split by its input"""
    linear: Callable[[Tensor, Tensor, Tensor], Tensor]
    """input [..., K], weight [N, K], bias [N] -> [..., N]"""
    lookup: Callable[[Tensor, Tensor], Tensor]
    """int64 [...], table [V, H] -> [..., H]"""
    attention: AttentionName
    """kernel of the attention within packed sequences"""


def parts_of(device: torch.device, dtype: torch.dtype) -> Parts:
    """The fastest parts for a network of `dtype` on `device`."""
    attention = attention_backend(device, dtype).name
    if device.type == "cpu":
        return Parts(cpu.CpuColumnLinear, cpu.CpuRowLinear, cpu.linear, cpu.lookup, attention)
    return Parts(ColumnLinear, RowLinear, F.linear, F.embedding, attention)
