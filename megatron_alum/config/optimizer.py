"""Adam with decoupled weight decay and the learning-rate schedule.

The paper gives the schedule (section 4.2: peak 1e-4, linear warm-up over the first 1 % of the steps, linear decay to
0); betas, epsilon and weight decay are those of Devlin et al. 2018. Biases and LayerNorm weights are never decayed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning rate

    Adam with decoupled weight decay; linear warm-up, then linear decay to the last iteration.
    """

    lr: float = 1e-4
    """peak learning rate (ALUM section 4.2: 1e-4 from scratch, 4e-5 continual)"""
    min_lr: float = 0.0
    """learning rate that the decay runs towards; it would be reached one iteration after the last one"""
    lr_warmup_fraction: float = 0.01
    """share of --train-iters over which the rate rises linearly from 0 (ALUM section 4.2: 1 %)"""
    weight_decay: float = 0.01
    """decoupled weight decay; none on biases and LayerNorm (Devlin et al. 2018: 0.01)"""
    adam_beta1: float = 0.9
    """decay of the first moment (Devlin et al. 2018)"""
    adam_beta2: float = 0.999
    """decay of the second moment (Devlin et al. 2018; RoBERTa: 0.98)"""
    adam_eps: float = 1e-6
    """added to the root of the second moment (Devlin et al. 2018: 1e-6)"""
    clip_grad: float = 1.0
    """largest global L2 norm of the gradient; 0 turns clipping off"""

    def __post_init__(self) -> None:
        """Refuse rates outside their range."""
        if self.lr <= 0:
            raise ValueError(f"--lr must be positive, but is {self.lr} instead.")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"--min-lr must be between 0 and --lr ({self.lr}), but is {self.min_lr} instead.")
        for flag, share in (
            ("lr-warmup-fraction", self.lr_warmup_fraction),
            ("adam-beta1", self.adam_beta1),
            ("adam-beta2", self.adam_beta2),
        ):
            if not 0 <= share < 1:
                raise ValueError(f"--{flag} must be at least 0 and below 1, but is {share} instead.")
        for flag, value in (("weight-decay", self.weight_decay), ("clip-grad", self.clip_grad)):
            if value < 0:
                raise ValueError(f"--{flag} must not be negative, but is {value} instead.")
        if self.adam_eps <= 0:
            raise ValueError(f"--adam-eps must be positive, but is {self.adam_eps} instead.")
