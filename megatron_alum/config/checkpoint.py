"""Where a run is saved, how often, and what it starts from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints

    A checkpoint is a folder iter_0000020/ that appears complete or not at all.
    """

    save: str | None = None
    """folder of the run: checkpoints and metrics.jsonl"""
    load: str | None = None
    """run to continue from its newest valid checkpoint, or from the one named (RUN/iter_0000040). Options that are not
    given are those of the run. An existing empty folder is a fresh start. Going back in --save itself moves newer
    checkpoints and a copy of the metrics into RUN/rolled_back_0001/"""
    save_interval: int = 1000
    """iterations between two checkpoints; 0 saves only at the end and on signals"""
    keep_last: int = 3
    """newest checkpoints to keep; 0 keeps all. The newest valid one is never deleted"""
    async_save: bool = False
    """write checkpoints from a background process; at most one is in flight, a second waits for it"""
    init_from: str | None = None
    """Hugging Face folder whose weights start a fresh run (continual pre-training)"""

    def __post_init__(self) -> None:
        """Refuse negative intervals."""
        for flag, count in (("save-interval", self.save_interval), ("keep-last", self.keep_last)):
            if count < 0:
                raise ValueError(f"--{flag} must not be negative, but is {count} instead.")
