"""What is traded inside one step: memory against time, and how faithful the ascent is against its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ComputeConfig:
    """Memory and cost of a step

    Only --alum-ascent changes the mathematics.
    """

    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """activations computed again in backward: none, selective (the attention core), full (every layer); dropout masks
    are replayed, so the losses do not change"""
    torch_compile: bool = False
    """compile the encoder layers with torch.compile"""
    alum_ascent: Literal["virtual", "label", "free"] = "virtual"
    """where delta's direction comes from: virtual, the divergence (the paper; 8 F a step); label, the label loss, which
    is then trained on at x + delta (conventional adversarial training, the paper's Eq. 2; 5 F); free, the clean
    backward's gradient, with the one-sided KL(clean || adversarial) on the adversarial branch alone (beyond the paper;
    6 F)"""
