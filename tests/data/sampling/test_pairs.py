"""Rows of an epoch: one worked case by hand, the rules as properties, and Google's algorithm written a second time."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from megatron_alum.data.sampling import pairs
from megatron_alum.data.sampling.native import walk_epoch as native_walk_epoch
from megatron_alum.data.sampling.pairs import WalkSettings, document_pairs, walk_epoch
from megatron_alum.data.sampling.rng import Stream
from megatron_alum.data.shards.corpus import Sentences
from tests.data.sampling.oracle import google_pairs, pop_one_by_one

P_VALUE = 1e-3
"""Seeds are fixed; below this two implementations count as different."""
TAILS, HEADS, LAST = 1 << 31, 0, (1 << 32) - 1


def sentences_of(documents: list[list[int]], *, first=0, last=None) -> Sentences:
    """Documents of sentence lengths -> their table, as a uint16 shard would have it."""
    lengths = np.array([n for document in documents for n in document], dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    return Sentences(
        lengths=lengths,
        offsets=2 * (ends - lengths),
        token_bytes=2,
        bounds=np.cumsum([0] + [len(document) for document in documents], dtype=np.int64),
        first=first,
        last=len(documents) if last is None else last,
    )


def settings(name="nsp", max_tokens=125, short_seq_prob=0.1, **other) -> WalkSettings:
    return WalkSettings(objective=name, max_tokens=max_tokens, short_seq_prob=short_seq_prob, seed=5, **other)


def random_lengths(num_documents, seed=0, longest=60):
    rng = random.Random(seed)
    return [[rng.randint(1, longest) for _ in range(rng.randint(1, 25))] for _ in range(num_documents)]


@pytest.fixture
def scripted(monkeypatch):
    """Replace the random words by a script: {(stream, ordinal): words}."""

    def install(script):
        class Scripted(pairs.WordStream):
            def __init__(self, seed, domain, low, high=0):
                super().__init__(seed, domain, low, high)
                self._words = list(reversed(script[Stream(domain >> 29), high]))

        monkeypatch.setattr(pairs, "WordStream", Scripted)

    return install


def test_worked_next_sentence_example(scripted):
    """Tokens of document 0: s0 = 0..6, s1 = 7..11, s2 = 12..20, s3 = 21..24, s4 = 25..27; document 1 starts at 28."""
    table = sentences_of([[7, 5, 9, 4, 3], [6, 8, 20]])
    scripted(
        {
            (Stream.DOCUMENT, 0): [LAST],  # full target length, 16
            # chunk s0 s1 s2 (21 tokens): A ends after s0, B is the true continuation s1 s2
            (Stream.PAIR, 0): [0, TAILS],
            # 7 + 14 = 21: B loses 5 tokens, three coins of five say front
            (Stream.TRUNCATION, 0): [0b10110],
            # chunk s3 s4: A is s3, B random: the only other document, its second sentence on (8, then 20 more)
            (Stream.PAIR, 1): [LAST, HEADS, LAST, 1 << 31],
            # 4 + 28 = 32: B loses 16 tokens, one from the front
            (Stream.TRUNCATION, 1): [0b1],
            # s4 was put back: a chunk of one sentence, B random whatever the coin: first sentence of document 1 on
            (Stream.PAIR, 2): [LAST, TAILS, 0, 0],
            # 3 + 14 = 17 (6 is short of the 13 wanted, 14 is not): B loses one token, from the back
            (Stream.TRUNCATION, 2): [0],
        }
    )
    assert list(document_pairs(table, settings(max_tokens=16), 0)) == [
        (0, 10, 7, 9, 0),
        (21, 28 + 6 + 1, 4, 12, 1),
        (25, 28, 3, 13, 1),
    ]


def test_worked_sentence_order_example(scripted):
    table = sentences_of([[7, 5, 9, 1], [30]])
    scripted(
        {
            (Stream.DOCUMENT, 0): [LAST],
            (Stream.PAIR, 0): [LAST, HEADS],  # A = s0 s1, B = s2, swapped: s2 comes first
            (Stream.TRUNCATION, 0): [0b1, 0b0],  # 9 + 12: "B" (12) loses 3 to equality, then B, A: A 1, B 4
            (Stream.PAIR, 1): [0, TAILS],  # one sentence of one token: no sample
            (Stream.TRUNCATION, 1): [0],
        }
    )
    assert list(document_pairs(table, settings("sop", max_tokens=16), 0)) == [(12 + 1, 0, 8, 8, 1)]
    scripted(
        {
            (Stream.DOCUMENT, 0): [LAST],
            (Stream.PAIR, 0): [1 << 31, TAILS],  # 30 tokens, one sentence: cut after 1 + 29 / 2 = 15
            (Stream.TRUNCATION, 0): [0, 0],
        }
    )
    assert list(document_pairs(table, settings("sop", max_tokens=16), 1)) == [(22, 37, 8, 8, 0)]


def test_worked_full_sentences_example():
    """Nine tokens of text or separator a sample: 4 + 3 | 5, end of document 0, 2 + 1 | 21 tokens cut 9, 9, 3 | ..."""
    table = sentences_of([[4, 3, 5], [2, 21], [6], [2]])
    rows = [row.item() for row in walk_epoch(table, settings("none", max_tokens=9))]
    assert rows == [
        (0, 0, 7, 0, 0),
        (7, 0, 7, 1, 0),  # 5 tokens of document 0 and 2 of document 1, one separator between
        (14, 1, 9, 0, 0),
        (23, 1, 9, 0, 0),
        (32, 1, 3, 0, 0),  # the rest of the long sentence; 3 + 1 + 6 would be one too many
        (35, 2, 8, 1, 0),
    ]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(5, 300))
def test_truncation_loses_what_popping_one_by_one_loses(a, b, max_tokens):
    words = pairs.WordStream(1, 0, a, b)
    a_start, b_start, a_length, b_length, label = pairs._truncated((1000, 5000, a, b, 1), max_tokens, words)
    assert (a_length, b_length) == pop_one_by_one(a, b, max_tokens) and label == 1
    assert 1000 <= a_start <= a_start + a_length <= 1000 + a
    assert 5000 <= b_start <= b_start + b_length <= 5000 + b


@pytest.mark.parametrize("first,last", [(0, 60), (10, 40)])
def test_next_sentence_labels_are_true(first, last):
    documents = random_lengths(60)
    table = sentences_of(documents, first=first, last=last)
    ends = np.cumsum([sum(document) for document in documents])
    rows = native_walk_epoch(table, settings(short_seq_prob=0.5))
    a_document = np.searchsorted(ends, rows["a_start"], side="right")
    b_document = np.searchsorted(ends, rows["b_start"], side="right")
    true_next = rows["label"] == 0
    assert 0 < true_next.sum() < len(rows)
    assert (a_document[true_next] == b_document[true_next]).all()
    assert (rows["a_start"] + rows["a_length"] <= rows["b_start"])[true_next].all()
    assert (a_document[~true_next] != b_document[~true_next]).all()
    for which, length in ((a_document, "a_length"), (b_document, "b_length")):
        assert which.min() >= first and which.max() < last and rows[length].min() >= 1
    assert (rows["a_length"].astype(int) + rows["b_length"] <= 125).all()
    inside = rows["b_start"] + rows["b_length"] <= ends[b_document]
    assert inside.all()


def test_every_sentence_is_used():
    """Without truncation A and true B together are the documents, each token once."""
    documents = random_lengths(40, longest=20)
    rows = native_walk_epoch(sentences_of(documents), settings(max_tokens=10_000))
    used = np.zeros(sum(map(sum, documents)), dtype=int)
    for row in rows:
        used[row["a_start"] : row["a_start"] + row["a_length"]] += 1
        if row["label"] == 0:
            used[row["b_start"] : row["b_start"] + row["b_length"]] += 1
    assert (used == 1).all()


@pytest.mark.parametrize("longest", [30, 300])
def test_full_sentences_lose_and_repeat_nothing(longest):
    documents = random_lengths(50, longest=longest)
    table = sentences_of(documents)
    rows = native_walk_epoch(table, settings("none", max_tokens=126))
    assert rows["a_start"][0] == 0
    assert (np.diff(rows["a_start"]) == rows["a_length"][:-1]).all()
    assert rows["a_start"][-1] + rows["a_length"][-1] == sum(map(sum, documents))
    assert (rows["a_length"].astype(int) + rows["b_length"] <= 126).all()
    starts = set((table.offsets // 2).tolist())
    long_pieces = sum(-(-n // 126) - 1 for document in documents for n in document)
    assert sum(start not in starts for start in rows["a_start"].tolist()) <= long_pieces


def test_sentence_order_halves_are_neighbours():
    documents = random_lengths(60, seed=4)
    rows = native_walk_epoch(sentences_of(documents), settings("sop", max_tokens=10_000))
    in_order = rows["label"] == 0
    assert (rows["a_start"] + rows["a_length"] == rows["b_start"])[in_order].all()
    assert (rows["b_start"] + rows["b_length"] == rows["a_start"])[~in_order].all()
    assert abs(in_order.mean() - 0.5) < 4 * 0.5 / len(rows) ** 0.5


def test_distributions_equal_googles_algorithm():
    """Labels, lengths of A and of B, and short targets against the second implementation."""
    documents = random_lengths(150, seed=2, longest=80)
    table, rng = sentences_of(documents), random.Random(0)
    theirs = [pair for _ in range(40) for d in range(150) for pair in google_pairs(documents, d, 125, 0.1, rng)]
    ours = np.concatenate([native_walk_epoch(table, settings(epoch=epoch)) for epoch in range(40)])
    single = np.mean([pair.single for pair in theirs])
    share, error = np.mean(ours["label"]), 0.5 / len(ours) ** 0.5
    assert abs(share - (0.5 + single / 2)) < 4 * error
    assert abs(len(ours) / len(theirs) - 1) < 0.01
    edges = np.array([1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 125])
    for name in ("a_length", "b_length"):
        a, b = (
            np.bincount(np.searchsorted(edges, values), minlength=len(edges))
            for values in (ours[name], [getattr(pair, name) for pair in theirs])
        )
        assert chi2_contingency(np.array([a, b])[:, (a + b) > 0]).pvalue > P_VALUE, name
    joint = [
        np.bincount(np.minimum(x + y, 125) // 25 * 2 + z, minlength=12)
        for x, y, z in (
            (ours["a_length"].astype(int), ours["b_length"], ours["label"]),
            tuple(
                np.array(values)
                for values in zip(*((p.a_length, p.b_length, p.is_random) for p in theirs), strict=True)
            ),
        )
    ]
    assert chi2_contingency(np.array(joint)[:, sum(joint) > 0]).pvalue > P_VALUE


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_short_targets_have_their_probability_and_are_uniform(probability):
    walk = settings(short_seq_prob=probability, max_tokens=125)
    targets = np.array([pairs._target_length(walk, document) for document in range(20_000)])
    short = targets < 125
    # A short target may also be the maximum: 1 of 124.
    expected = probability * 123 / 124
    assert abs(short.mean() - expected) <= 4 * (expected * (1 - expected) / 20_000) ** 0.5
    if probability:
        counts = np.bincount(targets[short], minlength=125)
        assert counts[:2].sum() == 0
        assert chisquare(counts[2:]).pvalue > P_VALUE


def test_other_document_and_its_first_sentence_are_uniform():
    """Documents of four one-token sentences: B's start tells document and sentence."""
    table = sentences_of([[1] * 4 for _ in range(21)])
    starts = np.concatenate([native_walk_epoch(table, settings(max_tokens=2, epoch=e)) for e in range(300)])
    starts = starts["b_start"][(starts["label"] == 1) & (starts["a_start"] // 4 == 7)]
    counts = np.delete(np.bincount(starts, minlength=84), range(28, 32))
    assert chisquare(counts).pvalue > P_VALUE


@pytest.mark.parametrize("name", ["nsp", "sop", "none"])
def test_native_rows_equal_the_reference(name):
    table = sentences_of(random_lengths(80, longest=200), first=3, last=77)
    for epoch, dataset, short in ((0, 0, 0.1), (3, 2, 1.0)):
        walk = settings(name, dataset=dataset, epoch=epoch, short_seq_prob=short)
        assert walk_epoch(table, walk).tobytes() == native_walk_epoch(table, walk).tobytes()


def test_threads_do_not_change_the_rows():
    table = sentences_of(random_lengths(9_000, seed=3))
    one, three = (native_walk_epoch(table, settings(), num_threads=n).tobytes() for n in (1, 3))
    assert one == three and len(one) > 0


def test_epochs_differ():
    table = sentences_of(random_lengths(50))
    assert (
        native_walk_epoch(table, settings(epoch=0)).tobytes() != native_walk_epoch(table, settings(epoch=1)).tobytes()
    )
