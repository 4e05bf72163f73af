"""Number formats of the forward and backward pass. Master weights, moments, losses and delta are always float32."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrecisionConfig:
    """Precision

    float32 unless --bf16 or --fp16; with ALUM the embedding, delta and the first LayerNorm's input stay float32.
    """

    bf16: bool = False
    """run the encoder and the heads in bfloat16"""
    fp16: bool = False
    """run the encoder and the heads in float16 with dynamic loss scaling, which covers the inner gradient too"""
    initial_loss_scale: float = 2.0**16
    """first factor on the loss (fp16)"""
    min_loss_scale: float = 1.0
    """smallest factor on the loss (fp16)"""
    loss_scale_window: int = 1000
    """iterations without overflow after which the factor doubles (fp16)"""
    hysteresis: int = 2
    """overflows before the factor is halved (fp16)"""

    def __post_init__(self) -> None:
        """Refuse both formats at once and scales that cannot work."""
        if self.bf16 and self.fp16:
            raise ValueError("--fp16 must be false when --bf16 is true, but both are true instead. Choose one.")
        if not 0 < self.min_loss_scale <= self.initial_loss_scale:
            raise ValueError(
                f"--min-loss-scale must be positive and at most --initial-loss-scale ({self.initial_loss_scale}), "
                f"but is {self.min_loss_scale} instead."
            )
        for flag, count in (("loss-scale-window", self.loss_scale_window), ("hysteresis", self.hysteresis)):
            if count < 1:
                raise ValueError(f"--{flag} must be at least 1, but is {count} instead.")

    @property
    def dtype_name(self) -> str:
        """`torch` attribute of the compute dtype."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"
