"""How fast the run goes and how much memory it takes: one row of performance.jsonl per interval."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.placement import Counts
from megatron_alum.objective.schedule import Phase
from megatron_alum.parallel import ProcessGroups
from megatron_alum.planning.flops import TextSize, iteration_flops, peak_flops
from megatron_alum.training.metrics import finite


class Stopwatch:
    """Time since the last row, excluding what happens between steps (validation, saving)."""

    def __init__(self, config: RunConfig, groups: ProcessGroups, *, vocab_size: int) -> None:
        """`vocab_size` is the tokenizer's, unpadded."""
        self._config, self._groups, self._vocab_size = config, groups, vocab_size
        self._world_size = groups.ranks_per_model * groups.dp_size
        self._waited_before = 0.0
        self.restart()

    def restart(self) -> None:
        """Start measuring now, with nothing counted yet."""
        self._since = time.perf_counter()
        self._iterations = self._tokens = 0
        self._flops = self._imbalance = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in the body does not count."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def count(self, phase: Phase, counts: Counts, imbalance: float) -> None:
        """One iteration of `phase` was done, on a global batch of these counts; `imbalance` as in IterationPlan."""
        text = TextSize.of(counts, sequences=self._config.training.global_batch_size)
        self._iterations += 1
        self._tokens += counts.tokens
        self._imbalance = max(self._imbalance, imbalance)
        self._flops += iteration_flops(self._config, phase, text, vocab_size=self._vocab_size)

    def row(
        self, iteration: int, *, loader_wait_seconds: float, own_work_seconds: float, **others: Any
    ) -> dict[str, Any]:
        """Speeds since the last row, then restart. Collective.

        samples_per_second and tokens_per_second (real tokens) over all processes; tflops_per_device on real tokens, by
        formula; mfu its share of the device's peak; fill the share of real tokens that rows of --seq-length would have;
        imbalance the largest excess of a rank's tokens over the mean; loader_wait the share of the time spent waiting
        for samples; slowest_rank the one whose forward and backward passes took longest, slowest_excess by what
        fraction of the median rank's time; memory_gb this process's largest so far.
        """
        seconds = time.perf_counter() - self._since
        tflops = self._flops / seconds / self._world_size / 1e12
        peak = peak_flops(self._config, self._groups.device)
        samples = self._iterations * self._config.training.global_batch_size
        row = {
            "iteration": iteration,
            "samples_per_second": samples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "tflops_per_device": tflops,
            "mfu": None if peak is None else tflops * 1e12 / peak,
            "fill": self._tokens / (samples * self._config.model.seq_length),
            "imbalance": self._imbalance,
            "loader_wait": (loader_wait_seconds - self._waited_before) / seconds,
            **slowest(own_work_seconds, self._groups),
            "memory_gb": peak_memory_bytes(self._groups.device) / 1e9,
            **{name: finite(value) for name, value in others.items()},
        }
        self._waited_before = loader_wait_seconds
        self.restart()
        return row


def slowest(seconds: float, groups: ProcessGroups) -> dict[str, Any]:
    """The rank with the most `seconds`, and its excess over the median; the same on every rank. Collective."""
    own = torch.tensor([seconds], dtype=torch.float64, device=groups.device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(groups.world))]
    dist.all_gather(gathered, own, group=groups.world)
    times = torch.cat(gathered).tolist()
    most = max(times)
    return {"slowest_rank": times.index(most), "slowest_excess": most / statistics.median(times) - 1}


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
