"""What is traded inside one step: memory against time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ComputeConfig:
    """Memory and cost of a step"""

    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """activations computed again in backward: none, selective (the attention core), full (every layer); dropout masks
    are replayed, so the losses do not change"""
    torch_compile: bool = False
    """compile the encoder layers with torch.compile"""
