"""Micro-batches of one data-parallel rank, prepared ahead by background threads.

Global batch G of iteration i holds the samples [i G, (i + 1) G). Rank r of dp takes the stretch of G / dp samples from
i G + r G / dp, cut into micro-batches of B in order. So the samples of an iteration do not depend on dp, a run resumes
at any sample, and a resume on another number of ranks neither repeats nor skips one.

    G = 8, dp = 2, B = 2     rank 0: [0 1] [2 3]   rank 1: [4 5] [6 7]   next iteration: rank 0: [8 9] ...
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    Each micro-batch is one task of a thread pool, so that more threads prepare more of them at once; they come out in
    order. Use as a context manager or call `close`.
    """

    def __init__(
        self,
        dataset: PretrainingDataset,
        plan: BatchPlan,
        *,
        consumed_samples: int = 0,
        prefetch_batches: int = 8,
        num_threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Start preparing batches from global sample `consumed_samples` on."""
        if consumed_samples < 0:
            raise ValueError(f"consumed_samples must be at least 0, but is {consumed_samples} instead.")
        self.wait_seconds = 0.0
        self._dataset, self._pin_memory, self._closed = dataset, pin_memory, False
        self._micro_batches = plan.micro_batches(consumed_samples)
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="batch-loader")
        self._ahead: deque[Future[PretrainingBatch]] = deque()
        for _ in range(prefetch_batches):
            self._prepare_next()

    def __iter__(self) -> BatchLoader:
        """The loader is its own iterator: there is one position in the data."""
        return self

    def __next__(self) -> PretrainingBatch:
        """The next micro-batch; an error met while preparing it is raised here and ends the iteration."""
        if self._closed:
            raise StopIteration
        begin = time.perf_counter()
        try:
            batch = self._ahead.popleft().result()
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - begin
        self._prepare_next()
        return batch

    def close(self) -> None:
        """Finish the batches in hand and drop all that were prepared."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def _prepare_next(self) -> None:
        self._ahead.append(self._executor.submit(self._prepare, next(self._micro_batches)))

    def _prepare(self, samples: range) -> PretrainingBatch:
        batch = self._dataset.batch(samples)
        return batch.pin_memory() if self._pin_memory else batch

    def __enter__(self) -> BatchLoader:
        """Use in a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close on the way out."""
        self.close()
