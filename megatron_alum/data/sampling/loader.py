"""The micro-batches of one data-parallel rank, iteration by iteration, prepared ahead by background threads.

Which samples they hold is placement's decision (`BatchPlan`); it depends on the iteration's samples alone, so a run
resumes at any of them, on any number of ranks, and neither repeats nor skips one.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from megatron_alum.data.sampling.batch import PretrainingBatch
from megatron_alum.data.sampling.placement import BatchPlan, Counts, IterationPlan, Measured


class Drawn(Measured, Protocol):
    """A data set that batches come from."""

    def batch(self, sample_indices: tuple[int, ...], *, num_adversarial: int, multiple: int) -> PretrainingBatch:
        """The samples with these global indices, in their order, as one micro-batch."""


@dataclass(frozen=True)
class IterationBatches:
    """What one optimizer step takes on one rank."""

    micro_batches: list[PretrainingBatch]
    """this rank's, M of them"""
    counts: Counts
    """of the global batch, the same on every rank"""
    imbalance: float
    """tokens of the rank that has the most, over the mean of the ranks, less 1"""


def draw(dataset: Drawn, plan: BatchPlan, first_sample: int) -> IterationBatches:
    """One iteration's micro-batches of a rank, here and now; the global batch begins at `first_sample`."""
    iteration = plan.iteration(dataset, first_sample)
    batches = [_draw_one(dataset, plan, iteration, m) for m in range(plan.num_micro_batches)]
    return IterationBatches(batches, iteration.counts, iteration.imbalance)


def _draw_one(dataset: Drawn, plan: BatchPlan, iteration: IterationPlan, m: int) -> PretrainingBatch:
    return dataset.batch(
        iteration.micro_batches[m], num_adversarial=iteration.num_adversarial[m], multiple=plan.token_multiple
    )


@dataclass(frozen=True)
class _Prepared:
    """An iteration under way."""

    plan: Future[IterationPlan]
    batches: list[Future[PretrainingBatch]]


class BatchLoader:
    """Endless iterator over a rank's iterations.

    `wait_seconds` is the time its caller has spent waiting for an iteration so far: near zero when the sampler keeps
    up. Placement is one task of a thread pool and each micro-batch another, so that more threads prepare more of them
    at once; they come out in order. Use as a context manager or call `close`.
    """

    def __init__(
        self,
        dataset: Drawn,
        plan: BatchPlan,
        *,
        consumed_samples: int = 0,
        prefetch_batches: int = 8,
        num_threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Start preparing from global sample `consumed_samples` on, `prefetch_batches` micro-batches ahead or the
        whole iteration that these lie in."""
        if consumed_samples < 0:
            raise ValueError(f"consumed_samples must be at least 0, but is {consumed_samples} instead.")
        self.wait_seconds = 0.0
        self._dataset, self._plan, self._pin_memory, self._closed = dataset, plan, pin_memory, False
        self._next_sample = consumed_samples
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="batch-loader")
        self._ahead: deque[_Prepared] = deque()
        for _ in range(-(-prefetch_batches // plan.num_micro_batches)):
            self._prepare_next()

    def __iter__(self) -> BatchLoader:
        """The loader is its own iterator: there is one position in the data."""
        return self

    def __next__(self) -> IterationBatches:
        """The next iteration; an error met while preparing it is raised here and ends the run of the loader."""
        if self._closed:
            raise StopIteration
        begin = time.perf_counter()
        try:
            prepared = self._ahead.popleft()
            plan = prepared.plan.result()
            batches = [batch.result() for batch in prepared.batches]
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - begin
        self._prepare_next()
        return IterationBatches(batches, plan.counts, plan.imbalance)

    def close(self) -> None:
        """Finish the tasks in hand and drop all that was prepared."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def _prepare_next(self) -> None:
        plan = self._executor.submit(self._plan.iteration, self._dataset, self._next_sample)
        batches = [self._executor.submit(self._prepare, plan, m) for m in range(self._plan.num_micro_batches)]
        self._ahead.append(_Prepared(plan, batches))
        self._next_sample += self._plan.global_batch_size

    def _prepare(self, plan: Future[IterationPlan], m: int) -> PretrainingBatch:
        # Tasks begin in the order of their submission, so a thread that waits here waits for one that is at work.
        batch = _draw_one(self._dataset, self._plan, plan.result(), m)
        return batch.pin_memory() if self._pin_memory else batch

    def __enter__(self) -> BatchLoader:
        """Use in a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close on the way out."""
        self.close()
