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
    manual_gc_interval: int = 0
    """iterations between two runs of Python's garbage collector, on all processes at once, where each would otherwise
    stop for it at a time of its own and let the others wait; 0 leaves it to Python"""

    def __post_init__(self) -> None:
        """Refuse negative intervals."""
        if self.manual_gc_interval < 0:
            raise ValueError(f"--manual-gc-interval must not be negative, but is {self.manual_gc_interval} instead.")
