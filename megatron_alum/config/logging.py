"""What a run tells about itself while it trains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoggingConfig:
    """Logging

    metrics.jsonl is always written; the rest is by option.
    """

    log_interval: int = 1
    """iterations between two rows of metrics.jsonl; values are fetched from the device only then"""
    tensorboard_dir: str | None = None
    """folder for TensorBoard events"""
    wandb_project: str | None = None
    """Weights & Biases project; needs the wandb package, and works offline with WANDB_MODE=offline"""
    progress_bar: bool = True
    """show a progress bar with loss, tokens/s and remaining time"""
    peak_tflops: float | None = None
    """dense peak of one device in TFLOP/s for the model FLOPs utilisation (mfu); default: known for common GPUs"""

    def __post_init__(self) -> None:
        """Refuse an interval that never comes and a peak that is no speed."""
        if self.log_interval < 1:
            raise ValueError(f"--log-interval must be at least 1, but is {self.log_interval} instead.")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"--peak-tflops must be positive, but is {self.peak_tflops} instead.")
