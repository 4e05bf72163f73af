"""Micro-batches of one data-parallel rank, prepared ahead by a background thread.

Global batch G of iteration i holds the samples [i G, (i + 1) G). Rank r of dp takes the stretch of G / dp samples from
i G + r G / dp, cut into micro-batches of B in order. So the samples of an iteration do not depend on dp, a run resumes
at any sample, and a resume on another number of ranks neither repeats nor skips one.

    G = 8, dp = 2, B = 2     rank 0: [0 1] [2 3]   rank 1: [4 5] [6 7]   next iteration: rank 0: [8 9] ...
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from megatron_alum.data.batch import PretrainingBatch
from megatron_alum.data.dataset import PretrainingDataset


@dataclass(frozen=True)
class BatchPlan:
    """Which samples a rank takes, and when."""

    micro_batch_size: int
    """B, sequences of one forward pass on one rank"""
    global_batch_size: int
    """G, sequences of one optimizer step over all ranks"""
    dp_rank: int = 0
    """this rank among the data-parallel ranks"""
    dp_size: int = 1
    """data-parallel ranks"""

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide."""
        if self.micro_batch_size < 1 or self.global_batch_size < 1:
            raise ValueError(
                "--micro-batch-size and --global-batch-size must be at least 1, but are "
                f"{self.micro_batch_size} and {self.global_batch_size} instead."
            )
        if self.global_batch_size % (self.micro_batch_size * self.dp_size):
            raise ValueError(
                "--global-batch-size must be a multiple of --micro-batch-size x data-parallel size = "
                f"{self.micro_batch_size} x {self.dp_size}, but is {self.global_batch_size} instead."
            )
        assert 0 <= self.dp_rank < self.dp_size

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one rank in one optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.dp_size)

    def micro_batches(self, consumed_samples: int) -> Iterator[range]:
        """Sample indices of each micro-batch of this rank, without end, from `consumed_samples` on."""
        base = consumed_samples
        while True:
            own = base + self.dp_rank * (self.global_batch_size // self.dp_size)
            for m in range(self.num_micro_batches):
                begin = own + m * self.micro_batch_size
                yield range(begin, begin + self.micro_batch_size)
            base += self.global_batch_size


class BatchLoader:
    """Endless iterator over a rank's micro-batches.

    `wait_seconds` is the time its caller has spent waiting for a batch so far: near zero when the sampler keeps up.
    Use as a context manager or call `close`; the thread is a daemon and never keeps the process alive.
    """

    def __init__(
        self,
        dataset: PretrainingDataset,
        plan: BatchPlan,
        *,
        consumed_samples: int = 0,
        prefetch_batches: int = 8,
        pin_memory: bool = False,
    ) -> None:
        """Start preparing batches from global sample `consumed_samples` on."""
        if consumed_samples < 0:
            raise ValueError(f"consumed_samples must be at least 0, but is {consumed_samples} instead.")
        self.dataset, self.plan, self.wait_seconds = dataset, plan, 0.0
        self._pin_memory = pin_memory
        self._queue: queue.Queue[PretrainingBatch | BaseException] = queue.Queue(prefetch_batches)
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._prepare, args=(plan.micro_batches(consumed_samples),), name="batch-loader", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> BatchLoader:
        """The loader is its own iterator: there is one position in the data."""
        return self

    def __next__(self) -> PretrainingBatch:
        """The next micro-batch; an error of the background thread is raised here."""
        if self._closing.is_set():
            raise StopIteration
        begin = time.perf_counter()
        item = self._queue.get()
        self.wait_seconds += time.perf_counter() - begin
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stop the background thread and drop what it prepared."""
        self._closing.set()
        while self._thread.is_alive():
            self._drop_one()
            self._thread.join(timeout=0.05)

    def _drop_one(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            return

    def _prepare(self, micro_batches: Iterator[range]) -> None:
        try:
            for indices in micro_batches:
                batch = self.dataset.batch(indices)
                self._queue.put(batch.pin_memory() if self._pin_memory else batch)
                if self._closing.is_set():
                    return
        except BaseException as error:  # handed to the caller, who must not wait for ever
            self._queue.put(error)

    def __enter__(self) -> BatchLoader:
        """Use in a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close on the way out."""
        self.close()
