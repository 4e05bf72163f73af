"""How fast the run goes and how much memory it takes: one row of performance.jsonl an interval."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from megatron_alum.config.run import RunConfig
from megatron_alum.parallel import ProcessGroups
from megatron_alum.training.flops import iteration_flops, peak_flops
from megatron_alum.training.metrics import finite
from megatron_alum.training.schedule import Phase


class Stopwatch:
    """Time since the last row, without what lies between steps (validation, saving)."""

    def __init__(self, config: RunConfig, groups: ProcessGroups, *, vocab_size: int) -> None:
        """`vocab_size` is the tokenizer's, unpadded."""
        self._config, self._groups, self._vocab_size = config, groups, vocab_size
        self._world_size = groups.ranks_per_model * groups.dp_size
        self._waited_before = 0.0
        self._flops = 0.0
        self._iterations = 0
        self.restart()

    def restart(self) -> None:
        """Begin to measure now."""
        self._since = time.perf_counter()

    def pause(self) -> float:
        """The moment from which `resume` leaves time out."""
        return time.perf_counter()

    def resume(self, paused_at: float) -> None:
        """Leave out the time since `pause`."""
        self._since += time.perf_counter() - paused_at

    def count(self, phase: Phase) -> None:
        """One iteration of `phase` was done."""
        self._iterations += 1
        self._flops += iteration_flops(self._config, phase, vocab_size=self._vocab_size)

    def row(self, iteration: int, *, loader_wait_seconds: float, **others: Any) -> dict[str, Any]:
        """Speeds since the last row, then begin anew.

        samples_per_second over all processes; tflops_per_device by formula; mfu its share of the device's peak;
        loader_wait the share of the time spent waiting for samples; memory_gb the largest so far on this process.
        """
        seconds = time.perf_counter() - self._since
        tflops = self._flops / seconds / self._world_size / 1e12
        peak = peak_flops(self._config, self._groups.device)
        row = {
            "iteration": iteration,
            "samples_per_second": self._iterations * self._config.training.global_batch_size / seconds,
            "tflops_per_device": tflops,
            "mfu": None if peak is None else tflops * 1e12 / peak,
            "loader_wait": (loader_wait_seconds - self._waited_before) / seconds,
            "memory_gb": peak_memory_bytes(self._groups.device) / 1e9,
            **{name: finite(value) for name, value in others.items()},
        }
        self._waited_before, self._flops, self._iterations = loader_wait_seconds, 0.0, 0
        self.restart()
        return row


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
