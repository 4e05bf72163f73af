"""Random words: known answers of Philox, and the fairness of what is derived from them."""

import numpy as np
import pytest
from scipy.stats import chisquare

from megatron_alum.data.sampling.rng import Permutation, Stream, WordStream, domain_word, philox4x32, threshold

P_VALUE = 1e-3
"""Seeds are fixed, so a test either always passes or always fails: below this the draw counts as unfair."""


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # philox4x32-10 lines of the authors' known-answer file (Random123, kat_vectors)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert philox4x32(counter, key[0] | key[1] << 32) == words


def test_stream_takes_blocks_in_order():
    stream = WordStream(7, 3, 11, 5)
    words = [stream.word() for _ in range(8)]
    assert words == [*philox4x32((0, 11, 5, 3), 7), *philox4x32((1, 11, 5, 3), 7)]


def test_domains_do_not_meet():
    seen = {
        domain_word(stream, split=split, dataset=dataset, epoch=epoch)
        for stream in Stream
        for split in range(3)
        for dataset in (0, 1, 4095)
        for epoch in (0, 1, 32767)
    }
    assert len(seen) == len(Stream) * 3 * 3 * 3 and max(seen) < 1 << 32


def test_below_is_uniform():
    stream = WordStream(1, 0, 0)
    counts = np.bincount([stream.below(7) for _ in range(14_000)], minlength=8)
    assert counts[7] == 0 and chisquare(counts[:7]).pvalue > P_VALUE


def test_ones_counts_whole_words_then_low_bits():
    stream, again = WordStream(1, 0, 0), WordStream(1, 0, 0)
    words = [again.word() for _ in range(3)]
    assert stream.ones(70) == words[0].bit_count() + words[1].bit_count() + (words[2] & 0b111111).bit_count()
    assert stream.word() == again.word()
    assert WordStream(1, 0, 0).ones(0) == 0


def test_threshold_bounds():
    assert threshold(0.0) == 0 and threshold(1.0) == 1 << 32 and threshold(0.25) == 1 << 30


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097])
def test_permutation_is_one(size):
    order = Permutation(size, seed=3, domain=domain_word(Stream.PERMUTATION))[np.arange(size)]
    assert sorted(order.tolist()) == list(range(size))


def test_permutation_has_no_pattern():
    """Where an element goes, and what follows it, are uniform over keys; one key leaves few elements in place."""
    size, keys = 13, 2_600
    orders = np.array(
        [Permutation(size, seed=k, domain=domain_word(Stream.PERMUTATION))[range(size)] for k in range(keys)]
    )
    for place in (0, 5, 12):
        assert chisquare(np.bincount(orders[:, place], minlength=size)).pvalue > P_VALUE
    steps = (orders[:, 1:] - orders[:, :-1]) % size
    assert chisquare(np.bincount(steps.ravel(), minlength=size)[1:]).pvalue > P_VALUE
    large = Permutation(100_000, seed=1, domain=domain_word(Stream.PERMUTATION))[np.arange(100_000)]
    assert (large == np.arange(100_000)).sum() < 10  # 1 expected
    assert abs(np.corrcoef(large[1:], large[:-1])[0, 1]) < 0.015
