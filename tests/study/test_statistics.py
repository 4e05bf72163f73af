"""Intervals against enumeration and tables, pairs by hand, and the sentences that differences allow."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megatron_alum.study.statistics import (
    Difference,
    bootstrap_interval,
    difference,
    paired,
    sentence,
    student_interval,
)

VALUES = st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=2, max_size=8).filter(lambda v: np.ptp(v) > 1e-3)


def test_pairs_are_those_that_both_have_at_equal_seeds():
    values = {(1, 1): 5.0, (1, 2): 7.0, (3, 1): 100.0}
    baseline = {(1, 2): 4.0, (1, 1): 3.0, (2, 1): -50.0}
    assert paired(values, baseline) == [2.0, 3.0]


def test_the_bootstrap_interval_is_that_of_all_resamples():
    """Three values have 27 resamples of equal weight: the 2.5 % and 97.5 % points of their means, by enumeration."""
    values = [0.0, 1.0, 5.0]
    means = sorted(statistics.fmean(drawn) for drawn in itertools.product(values, repeat=3))
    expected = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert bootstrap_interval(values) == pytest.approx(tuple(expected))


def test_the_bootstrap_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(3).normal(2.0, 0.5, 400)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


@pytest.mark.parametrize("values, quantile", [([1.0, 3.0], 12.706), ([1.0, 2.0, 6.0], 4.303), ([0, 1, 2, 3, 9], 2.776)])
def test_students_interval_has_the_quantiles_of_the_tables(values, quantile):
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    assert student_interval(values) == pytest.approx((mean - quantile * error, mean + quantile * error), rel=1e-3)


@given(VALUES)
def test_the_interval_holds_both_and_agrees_with_scipys_test(values):
    found, (low, high) = difference(values), bootstrap_interval(values)
    assert found.low <= low <= high <= found.high and found.n == len(values)
    if found.is_one:  # then Student's t-test says so as well
        assert stats.ttest_1samp(values, 0.0).pvalue < 0.05


@given(VALUES)
def test_swapping_the_arms_turns_the_difference_around(values):
    there, back = difference(values), difference([-value for value in values])
    assert (there.mean, there.is_one) == (-back.mean, back.is_one)


def test_one_pair_is_not_a_difference_and_none_is_an_error():
    found = difference([7.0])
    assert (found.mean, found.n, found.is_one) == (7.0, 1, False)
    with pytest.raises(ValueError, match="at least one pair"):
        difference([])


def made(mean, half, n=3):
    return Difference(mean, n, mean - half, mean + half)


SINGLE = Difference(9.0, 1, -math.inf, math.inf)
# {arm: difference}, lower is better -> the sentence
SENTENCES = [
    ({"a": made(-0.5, 0.1)}, True, "Better than base: a (by 0.50 nats, n 3)."),
    ({"a": made(-0.5, 0.1)}, False, "Worse than base: a (by 0.50 nats, n 3)."),
    ({"a": made(0.5, 0.1)}, True, "Worse than base: a (by 0.50 nats, n 3)."),
    ({"a": made(0.5, 0.6), "b": made(-0.2, 0.3)}, True, "No difference from base shown in 2 of 2."),
    (
        {"a": made(0.5, 0.6), "b": made(-0.2, 0.1, 2), "c": made(3.0, 1.0)},
        True,
        "Better than base: b (by 0.20 nats, n 2); worse than base: c (by 3.00 nats, n 3); "
        "no difference from base shown in the other 1 of 3.",
    ),
    ({"a": SINGLE}, True, "One pair each: no difference from base can be told from chance."),
    ({"a": SINGLE, "b": made(0.5, 0.6)}, True, "No difference from base shown in 1 of 2; one pair only: a."),
    ({"a": SINGLE, "b": made(0.5, 0.1)}, True, "Worse than base: b (by 0.50 nats, n 3); one pair only: a."),
    ({}, True, "Nothing to compare with base yet."),
]


@pytest.mark.parametrize("found, lower_is_better, expected", SENTENCES)
def test_a_sentence_says_what_the_intervals_allow(found, lower_is_better, expected):
    said = sentence(found, baseline="base", lower_is_better=lower_is_better, unit=" nats", digits=2)
    assert said == expected
