"""Micro-batches by rank: shards of data parallelism, exact resume, and threads that never hang."""

import threading
import time

import pytest
import torch

from megatron_alum.data.sampling.loader import BatchLoader
from megatron_alum.data.sampling.placement import BatchPlan
from tests.data.sampling.builders import assert_same_batches, open_train, toy_corpus


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    prefix = toy_corpus(tmp_path_factory.mktemp("loader") / "corpus", 40)
    return open_train(prefix, seq_length=32)


def take(dataset, plan, number, **options):
    with BatchLoader(dataset, plan, **options) as loader:
        return [next(loader) for _ in range(number)]


def indices(batches):
    return [batch.sample_index.tolist() for batch in batches]


def flat(iterations):
    return [g for one in iterations for group in indices(one.micro_batches) for g in group]


def assert_same_iterations(a, b):
    assert (a.counts, a.imbalance) == (b.counts, b.imbalance)
    for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
        assert_same_batches(x, y)


def test_iterations_follow_each_other(dataset):
    """Global batches of 8 from sample 0 on, two micro-batches of each on either rank, as the plan says."""
    plans = [BatchPlan(micro_batch_size=2, global_batch_size=8, dp_rank=r, dp_size=2) for r in range(2)]
    for plan in plans:
        for i, iteration in enumerate(take(dataset, plan, 3)):
            planned = plan.iteration(dataset, 8 * i)
            assert indices(iteration.micro_batches) == [list(group) for group in planned.micro_batches]
            assert (iteration.counts, iteration.imbalance) == (planned.counts, planned.imbalance)


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 4), (1, 24), (2, 6), (3, 4), (4, 2), (6, 4)])
def test_an_iteration_has_the_same_samples_on_every_layout(dataset, dp_size, micro):
    found = []
    for rank in range(dp_size):
        plan = BatchPlan(micro, 24, dp_rank=rank, dp_size=dp_size)
        found += flat(take(dataset, plan, 2, consumed_samples=48))
    assert sorted(found) == list(range(48, 96))


def test_resume_equals_an_uninterrupted_run(dataset):
    plan = BatchPlan(4, 8, alum_batch_fraction=0.5)
    whole = take(dataset, plan, 6)
    resumed = take(dataset, plan, 4, consumed_samples=16)
    for a, b in zip(whole[2:], resumed, strict=True):
        assert_same_iterations(a, b)


def test_resume_on_another_number_of_ranks_sees_each_sample_once_an_epoch(dataset):
    """Three iterations on 2 ranks, then 4 ranks and another batch size, over more than an epoch."""
    (size,) = dataset.samples_per_epoch()
    found = []
    for rank in range(2):
        found += flat(take(dataset, BatchPlan(4, 8, dp_rank=rank, dp_size=2), 3))
    iterations = (size - 24) // 16 + 1
    for rank in range(4):
        plan = BatchPlan(4, 16, dp_rank=rank, dp_size=4)
        found += flat(take(dataset, plan, iterations, consumed_samples=24))
    assert sorted(found) == list(range(24 + 16 * iterations))
    rows = [dataset.shards[0].locate(g) for g in sorted(found)[:size]]
    assert sorted(rows) == [(0, row) for row in range(size)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"micro_batch_size": 3, "global_batch_size": 8},
            "multiple of --micro-batch-size x data-parallel size = 3 x 1",
        ),
        ({"micro_batch_size": 2, "global_batch_size": 6, "dp_size": 2}, "2 x 2"),
        ({"micro_batch_size": 0, "global_batch_size": 8}, "at least 1"),
    ],
)
def test_sizes_that_do_not_divide(arguments, words):
    with pytest.raises(ValueError, match=words):
        BatchPlan(**arguments)


def test_negative_position(dataset):
    with pytest.raises(ValueError, match="consumed_samples"):
        BatchLoader(dataset, BatchPlan(1, 1), consumed_samples=-1)


class Slow:
    """A data set that takes its time, and counts."""

    def __init__(self, dataset, seconds):
        self.dataset, self.seconds, self.batches = dataset, seconds, 0

    def measure(self, samples):
        return self.dataset.measure(samples)

    @property
    def has_pairs(self):
        return self.dataset.has_pairs

    def batch(self, samples, **options):
        time.sleep(self.seconds)
        self.batches += 1
        return self.dataset.batch(samples, **options)


@pytest.mark.parametrize(("global_batch_size", "ahead"), [(1, 3), (2, 4), (5, 5)])
def test_batches_are_prepared_ahead_and_no_further(dataset, global_batch_size, ahead):
    """Three micro-batches of one sample, or the whole iterations that they lie in."""
    slow = Slow(dataset, 0.0)
    with BatchLoader(slow, BatchPlan(1, global_batch_size), prefetch_batches=3) as loader:
        deadline = time.time() + 10
        while slow.batches < ahead and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert slow.batches == ahead
        assert loader.wait_seconds == 0.0


@pytest.mark.parametrize("sampler", ["cpp", "python"])
def test_many_threads_deliver_the_same_batches_in_order(tmp_path, sampler):
    """Over several epochs of a small shard, so that epochs are opened while other threads draw."""
    prefix = toy_corpus(tmp_path / "corpus", 8)
    found = []
    for threads in (1, 4):
        folder = str(tmp_path / f"cache{threads}")
        dataset = open_train(prefix, seq_length=32, sampler=sampler, data_cache_path=folder)
        found.append(take(dataset, BatchPlan(4, 16), 60, num_threads=threads))
        assert len(dataset.shards[0].epochs) > 2
    for a, b in zip(*found, strict=True):
        assert_same_iterations(a, b)


def test_waiting_is_measured(dataset):
    with BatchLoader(Slow(dataset, 0.1), BatchPlan(1, 1)) as loader:
        for _ in range(3):
            next(loader)
        assert 0.25 < loader.wait_seconds < 2.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_batches_are_pinned_for_a_gpu(dataset):
    (iteration,) = take(dataset, BatchPlan(4, 4), 1, pin_memory=True)
    (batch,) = iteration.micro_batches
    assert batch.tokens.is_pinned() and batch.masked_labels.is_pinned()
    assert torch.equal(batch.to("cuda", non_blocking=True).tokens.cpu(), dataset.batch(range(4)).tokens)


class Broken(Slow):
    """Fails at sample 3, where it is measured or where it is drawn."""

    def __init__(self, dataset, where):
        super().__init__(dataset, 0.0)
        self.where = where

    def measure(self, samples):
        return self._unless_broken("measure", samples, super().measure)

    def batch(self, samples, **options):
        return self._unless_broken("batch", samples, super().batch, **options)

    def _unless_broken(self, name, samples, call, **options):
        if self.where == name and 3 in samples:
            raise OSError("the disk is gone")
        return call(samples, **options)


@pytest.mark.parametrize("where", ["measure", "batch"])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_thread_reaches_the_caller(dataset, where, threads):
    loader = BatchLoader(Broken(dataset, where), BatchPlan(1, 1), num_threads=threads)
    assert flat([next(loader) for _ in range(3)]) == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)


def test_closing_ends_the_threads(dataset):
    before = threading.active_count()
    loader = BatchLoader(dataset, BatchPlan(1, 1), prefetch_batches=1)
    next(loader)
    assert threading.active_count() > before
    loader.close()
    loader.close()
    assert threading.active_count() == before
