"""Placement by length: every sample once, parts of equal tokens, and counts that need no communication."""

import random

import numpy as np
import pytest

from megatron_alum.data.sampling.batch import IGNORED_LABEL
from megatron_alum.data.sampling.loader import draw
from megatron_alum.data.sampling.placement import BatchPlan, num_adversarial
from tests.data.sampling.builders import open_train, toy_corpus
from tests.helpers.pairs import pairs

LAYOUTS = [(1, 1), (1, 4), (2, 1), (2, 3), (4, 2), (3, 4), (24, 1), (1, 24), (4, 6)]
"""(data-parallel size, micro-batches per rank) for 24 samples; the last leaves one sample per micro-batch."""


class Lengths:
    """A data set that consists only of lengths."""

    has_pairs = True

    def __init__(self, lengths):
        self.lengths = np.array(lengths, dtype=np.int64)

    def measure(self, samples):
        lengths = self.lengths[list(samples)]
        return lengths, np.maximum(1, lengths // 7)


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placement")
    return [toy_corpus(folder / name, num, seed=seed) for name, num, seed in (("first", 40, 0), ("second", 12, 9))]


def plans(dp_size, num_micro_batches, size=24, **options):
    micro = size // (dp_size * num_micro_batches)
    return [BatchPlan(micro, size, rank, dp_size, **options) for rank in range(dp_size)]


def test_worked_example():
    dataset = Lengths([90, 20, 35, 128, 60, 15, 44, 28])
    first, second = (BatchPlan(4, 8, rank, 2).iteration(dataset, 0) for rank in range(2))
    assert first.micro_batches == ((3, 5, 6, 7),) and second.micro_batches == ((0, 1, 2, 4),)
    assert first.counts == second.counts and first.counts.tokens == 420
    assert first.imbalance == second.imbalance == pytest.approx(215 / 210 - 1)
    # The first two samples are adversarial: placed first (90 and 20 apart), then the others by length.
    first, second = (BatchPlan(4, 8, rank, 2, alum_batch_fraction=0.25).iteration(dataset, 0) for rank in range(2))
    assert first.micro_batches == ((0, 2, 4, 7),) and second.micro_batches == ((1, 3, 5, 6),)
    assert first.num_adversarial == second.num_adversarial == (1,)
    assert first.counts.adversarial_masked == 90 // 7 + 20 // 7 and first.counts.adversarial_sequences == 2


@pytest.mark.parametrize(("fraction", "number"), [(1.0, 256), (0.5, 128), (0.1, 26), (0.004, 1), (1e-6, 1)])
def test_at_least_one_sample_is_adversarial(fraction, number):
    assert num_adversarial(256, fraction) == number


@pytest.mark.parametrize(("dp_size", "num_micro_batches"), LAYOUTS)
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.04])
def test_every_sample_once_and_adversarial_ones_first(dp_size, num_micro_batches, fraction):
    rng = random.Random(0)
    for _ in range(20):
        first_sample = rng.randrange(1000)
        lengths = [0] * first_sample + [rng.choice([4, 10, 60, 512, rng.randrange(4, 513)]) for _ in range(24)]
        num_adversarial = max(1, round(24 * fraction))
        found = []
        for plan in plans(dp_size, num_micro_batches, alum_batch_fraction=fraction):
            iteration = plan.iteration(Lengths(lengths), first_sample)
            assert len(iteration.micro_batches) == num_micro_batches
            for group, number in zip(iteration.micro_batches, iteration.num_adversarial, strict=True):
                assert group
                assert list(group) == sorted(group)
                assert [g - first_sample < num_adversarial for g in group] == [i < number for i in range(len(group))]
                found += group
        assert sorted(found) == list(range(first_sample, first_sample + 24))


def slowly_placed(lengths, num_adversarial, dp_size, num_micro_batches):
    """A second implementation of the rule, by searching lists: the set of sample sets of each rank."""

    def spread(items, num_parts, room):
        parts = [[] for _ in range(num_parts)]
        for item in sorted(items, key=lambda item: (-item[1], -item[0], item[2])):
            free = [part for part in parts if len(part) < room]
            min(free, key=lambda part: sum(other[0] for other in part)).append(item)
        return parts

    samples = [(n, n if g < num_adversarial else 0, g) for g, n in enumerate(lengths)]
    groups = spread(samples, dp_size * num_micro_batches, len(lengths))
    sums = [(sum(s[0] for s in group), sum(s[1] for s in group), k) for k, group in enumerate(groups)]
    ranks = spread(sums, dp_size, num_micro_batches)
    return [[sorted(s[2] for s in groups[k]) for _, _, k in sorted(rank, key=lambda item: item[2])] for rank in ranks]


@pytest.mark.parametrize(("dp_size", "num_micro_batches"), LAYOUTS)
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.04])
def test_longest_first_to_the_part_with_the_fewest_tokens(dp_size, num_micro_batches, fraction):
    rng = random.Random(1)
    for _ in range(20):
        lengths = [rng.choice([16, 64, 512, rng.randrange(4, 513)]) for _ in range(24)]
        layout = plans(dp_size, num_micro_batches, alum_batch_fraction=fraction)
        found = [[list(g) for g in plan.iteration(Lengths(lengths), 0).micro_batches] for plan in layout]
        assert found == slowly_placed(lengths, layout[0].num_adversarial, dp_size, num_micro_batches)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
@pytest.mark.parametrize(("dp_size", "num_micro_batches"), [(2, 1), (2, 4), (4, 2), (8, 16)])
def test_no_part_exceeds_the_mean_by_more_than_one_sample(dp_size, num_micro_batches, fraction):
    """Graham's bound: the sample that made a part the largest went there when no other part was smaller."""
    rng = np.random.default_rng(2)
    size = dp_size * num_micro_batches * 16
    for _ in range(20):
        lengths = rng.integers(4, 513, size=size)
        plan = BatchPlan(16, size, 0, dp_size, fraction)
        places = plan.place(lengths)
        tokens = np.bincount(places, weights=lengths, minlength=dp_size * num_micro_batches)
        assert tokens.max() <= tokens.mean() + lengths.max()
        adversarial = np.bincount(places[: plan.num_adversarial], weights=lengths[: plan.num_adversarial])
        assert adversarial.max() <= lengths[: plan.num_adversarial].sum() / len(tokens) + lengths.max()


@pytest.mark.parametrize(
    *pairs(
        masking=["token", "whole_word", "ngram"],
        layout=[(1, 3), (2, 2), (4, 1)],
        objective=["nsp", "none"],
        sampler=["cpp", "python"],
    ),
    ids=str,
)
def test_counts_are_those_of_the_batches(prefixes, tmp_path, sampler, masking, objective, layout):
    """Every count of the plan against the tensors of all ranks' micro-batches, over a blend, epochs and mask rates."""
    dp_size, num_micro_batches = layout
    path = ("1", prefixes[0], "2", prefixes[1])
    options = {"masking": masking, "objective": objective, "seq_length": 64, "train_samples": 700}
    dataset = open_train(path, sampler=sampler, data_cache_path=str(tmp_path), **options)
    layout = plans(dp_size, num_micro_batches, alum_batch_fraction=0.4)
    for first_sample in (0, 48, 696):
        drawn = [draw(dataset, plan, first_sample) for plan in layout]
        batches = [batch for one in drawn for batch in one.micro_batches]
        (counts,) = {one.counts for one in drawn}
        (imbalance,) = {one.imbalance for one in drawn}
        adversarial = [batch.sequence < batch.num_adversarial for batch in batches]
        masked = [part[batch.masked_positions] for part, batch in zip(adversarial, batches, strict=True)]
        assert counts.tokens == sum(int((b.sequence < b.num_sequences).sum()) for b in batches)
        assert counts.masked == sum(len(b.masked_labels) for b in batches)
        assert counts.adversarial_masked == sum(int(part.sum()) for part in masked)
        assert counts.adversarial_sequences == sum(b.num_adversarial for b in batches) == 10  # 0.4 x 24
        labelled = sum(int((b.nsp_labels != IGNORED_LABEL).sum()) for b in batches)
        assert counts.labelled == (labelled if objective == "nsp" else 1)
        ranks = [sum(b.num_tokens for b in one.micro_batches) for one in drawn]
        assert imbalance == pytest.approx(max(ranks) / np.mean(ranks) - 1)
        assert all(b.tokens.numel() % 8 == 0 for b in batches)


def test_counts_and_samples_are_the_same_on_every_layout(prefixes):
    dataset = open_train(prefixes[0], seq_length=64)
    found = set()
    for dp_size, num_micro_batches in LAYOUTS:
        layout = plans(dp_size, num_micro_batches, alum_batch_fraction=0.3)
        iterations = [plan.iteration(dataset, 48) for plan in layout]
        adversarial = [
            g
            for one in iterations
            for group, number in zip(one.micro_batches, one.num_adversarial, strict=True)
            for g in group[:number]
        ]
        assert sorted(adversarial) == list(range(48, 48 + 7))  # 0.3 x 24
        found |= {one.counts for one in iterations}
    assert len(found) == 1


def test_a_large_token_multiple_leaves_one_shape(prefixes):
    dataset = open_train(prefixes[0], seq_length=64)
    layout = plans(2, 2, alum_batch_fraction=0.5, token_multiple=512)
    shapes = {b.tokens.shape for plan in layout for i in range(8) for b in draw(dataset, plan, 24 * i).micro_batches}
    assert shapes == {(512,)}
