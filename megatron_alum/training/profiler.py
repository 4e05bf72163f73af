"""A trace of some iterations and a snapshot of the device's memory, on rank 0 (--profile-step-start, -end).

RUN/profile/iterations_10-12.json.gz     Chrome trace of torch's profiler: https://ui.perfetto.dev
RUN/profile/memory_10-12.pickle          https://docs.pytorch.org/memory_viz; on a GPU
"""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_alum.config.run import LoggingConfig


class Profile:
    """Profiles on rank 0 if the options are given; otherwise every call does nothing."""

    def __init__(self, options: LoggingConfig, root: Path, *, is_leader: bool) -> None:
        """Nothing is recorded yet. `root` is the folder of the run."""
        self._first, self._last = options.profile_step_start, options.profile_step_end
        self._folder, self._is_on = root / "profile", is_leader and self._first is not None
        self._profiler: torch.profiler.profile | None = None

    def begin(self, iteration: int) -> None:
        """`iteration` begins. Raises: OSError where a trace that is complete cannot be written."""
        if not self._is_on:
            return
        assert self._first is not None and self._last is not None
        if iteration > self._last:
            self.close()
        elif iteration >= self._first and self._profiler is None:
            if torch.cuda.is_available():
                torch.cuda.memory._record_memory_history()
            self._profiler = torch.profiler.profile(record_shapes=True, with_stack=True)
            self._profiler.start()

    def close(self) -> None:
        """Write what was recorded, even if the run ends before the last iteration to profile."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self._folder.mkdir(exist_ok=True)
        name = f"{self._first}-{self._last}"
        self._profiler.export_chrome_trace(str(self._folder / f"iterations_{name}.json.gz"))
        if torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(str(self._folder / f"memory_{name}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        self._profiler, self._is_on = None, False
