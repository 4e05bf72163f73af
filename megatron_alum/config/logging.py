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

    profile_step_start: int | None = None
    """first iteration of a trace by torch's profiler, of rank 0, with a snapshot of the GPU's memory: RUN/profile/"""
    profile_step_end: int | None = None
    """last iteration of the trace (default: the first one); a few are enough, each takes tens of megabytes"""

    def __post_init__(self) -> None:
        """Refuse an interval that never comes, a peak that is no speed and a trace of nothing."""
        start, end = self.profile_step_start, self.profile_step_end
        if end is None:
            object.__setattr__(self, "profile_step_end", start)
        elif start is None or not 1 <= start <= end:
            raise ValueError(
                f"--profile-step-start must be at least 1 and at most --profile-step-end ({end}), but is {start} "
                "instead."
            )
        if start is not None and start < 1:
            raise ValueError(f"--profile-step-start must be at least 1, but is {start} instead.")
        if self.log_interval < 1:
            raise ValueError(f"--log-interval must be at least 1, but is {self.log_interval} instead.")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"--peak-tflops must be positive, but is {self.peak_tflops} instead.")
