"""Masked positions and their replacements: worked cases, whole-word integrity, and chi-square of every proportion."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from megatron_alum.data.sampling import masking
from megatron_alum.data.sampling.masking import KEPT_BELOW, MASKED_BELOW, num_to_mask, replacement
from megatron_alum.data.sampling.rng import WordStream
from tests.data.sampling.builders import (
    WORDS,
    open_train,
    random_documents,
    sequences,
    toy_bert_tokenizer,
    toy_roberta_tokenizer,
    write_shards,
)

P_VALUE = 1e-3
"""Seeds are fixed; below this a proportion counts as wrong."""


class Script(WordStream):
    """Words from a list; asking for one more is an error."""

    def __init__(self, *words):
        super().__init__(0, 0, 0)
        self._words = list(reversed(words))

    def word(self):
        return self._words.pop()


def fraction(numerator, denominator):
    """The smallest word w with (w * denominator) >> 32 == numerator."""
    return -(-(numerator << 32) // denominator)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A WordPiece shard in which two of five tokens continue a word."""
    rng, documents = np.random.default_rng(0), random_documents(120, seed=1)
    for document in documents:
        for sentence in document:
            for i in range(1, len(sentence)):
                if rng.random() < 0.4:
                    sentence[i] = int(rng.integers(5 + WORDS, 5 + WORDS + WORDS // 2))
    return write_shards(tmp_path_factory.mktemp("masking") / "pieces", documents, toy_bert_tokenizer())


def originals(batch):
    """Token ids before masking, [T]."""
    tokens = batch.tokens.clone()
    tokens[batch.masked_positions] = batch.masked_labels
    return tokens


def is_masked(batch):
    """bool [T]."""
    masked = torch.zeros(len(batch.tokens), dtype=torch.bool)
    masked[batch.masked_positions] = True
    return masked


@pytest.mark.parametrize(
    ("length", "rate", "candidates", "number"),
    [
        (128, 0.15, 125, 19),  # 19.2
        (10, 0.05, 7, 1),  # 0.5 rounds to 0, but one is the least
        (50, 0.05, 47, 2),  # 2.5: halves to even, as Python 3 rounds in Google's script
        (70, 0.05, 67, 4),  # 3.5
        (8, 0.9, 5, 5),  # never more than there are candidates
    ],
)
def test_number_of_masked_tokens(length, rate, candidates, number):
    assert num_to_mask(length, rate, candidates) == number


def test_floyd_by_hand():
    # 3 of 5: j = 2 draws 1; j = 3 draws 1 again, so takes 3 itself; j = 4 draws 0.
    words = Script(fraction(1, 3), fraction(1, 4), fraction(0, 5))
    assert masking._select_tokens(words, 3, 5) == [0, 1, 3]


def test_whole_words_by_hand():
    # Words of 1, 3, 2, 1 tokens, budget 3: order 1 (3 tokens) would fill it.
    assert masking._select_runs(Script(fraction(1, 4)), 3, [1, 3, 2, 1], [True] + [False] * 3, []) == [1]
    # Word 2 (2 tokens) leaves 1: word 1 does not fit and is passed over, word 0 fits.
    script = Script(fraction(2, 4), fraction(0, 3), fraction(0, 2))
    assert masking._select_runs(script, 3, [1, 3, 2, 1], [True] + [False] * 3, []) == [0, 2]
    # Nothing fits: the first word drawn is taken whole.
    script = Script(fraction(1, 2), 0)
    assert masking._select_runs(script, 1, [4, 3], [True, False], []) == [1]


def test_ngrams_by_hand():
    thresholds = masking.ngram_thresholds(3)
    assert thresholds == [int(2**32 * 6 / 11), int(2**32 * 9 / 11)]
    three, text_first = thresholds[1], [True, False, False, True, False]
    # From word 1 a run of three: stops before word 3, where another text begins; then word 4 alone.
    script = Script(fraction(1, 5), three, fraction(3, 4), 0)
    assert masking._select_runs(script, 3, [1] * 5, text_first, thresholds) == [1, 2, 4]
    # A run is cut at what still fits: 1 + 2 tokens, and not 2 more.
    script = Script(0, three)
    assert masking._select_runs(script, 3, [1, 2, 2], [True, False, False], thresholds) == [0, 1]
    # A run stops at a word already taken, and such a word is no start.
    script = Script(fraction(1, 3), 0, 0, three, 0, 0)
    assert masking._select_runs(script, 3, [1, 1, 1], [True, False, False], thresholds) == [0, 1, 2]


def test_replacement_bounds():
    class Special:
        mask = 99
        regular = np.arange(10, 30)

    assert replacement(5, 0, Special) == replacement(5, MASKED_BELOW - 1, Special) == 99
    assert replacement(5, MASKED_BELOW, Special) == replacement(5, KEPT_BELOW - 1, Special) == 5
    assert replacement(5, KEPT_BELOW, Special) == 10 and replacement(5, (1 << 32) - 1, Special) == 29


@pytest.mark.parametrize("mode", ["token", "whole_word", "ngram"])
def test_only_text_is_masked_and_labels_are_the_originals(pieces, mode):
    dataset = open_train(pieces, masking=mode, seq_length=64)
    batch = dataset.batch(range(256))
    masked, real = is_masked(batch), originals(batch)
    assert masked.sum() == batch.num_masked_tokens  # distinct
    assert (batch.masked_positions.diff() > 0).all()
    special = (real == 2) | (real == 3) | (batch.sequence == 256)
    assert not (masked & special).any()
    assert set(batch.sequence[masked].tolist()) == set(range(256))
    assert (batch.tokens == real)[~masked].all()
    assert not torch.isin(batch.masked_labels, torch.tensor([0, 2, 3, 4])).any()


def test_eighty_ten_ten(pieces):
    dataset = open_train(pieces, mask_rate_start=0.25)
    batch = dataset.batch(range(4000))
    given, label = batch.tokens[batch.masked_positions], batch.masked_labels
    to_mask, kept = given == 4, given == label
    regular = WORDS + WORDS // 2
    counts = [int(to_mask.sum()), int(kept.sum()), int((~to_mask & ~kept).sum())]
    expected = np.array([0.8, 0.1 + 0.1 / regular, 0.1 * (1 - 1 / regular)]) * len(label)
    assert len(label) > 50_000 and chisquare(counts, expected).pvalue > P_VALUE
    drawn = np.bincount(given[~to_mask & ~kept].numpy(), minlength=5 + regular)
    assert drawn[:5].sum() == 0  # no special token is ever put in
    assert chisquare(drawn[5:].reshape(-1, 20).sum(1)).pvalue > P_VALUE


def test_masked_positions_are_uniform(pieces):
    """Full rows of 64: each of the 61 text positions is masked equally often, whatever its place."""
    batch = open_train(pieces, seq_length=64, short_seq_prob=0.0).batch(range(6000))
    hits, num_full = np.zeros(61), 0
    for row in sequences(batch):
        if len(row.tokens) == 64:
            num_full += 1
            separator = row.originals.index(3)
            for place in row.masked:
                hits[place - 1 if place < separator else place - 2] += 1  # place among the candidates
    assert num_full > 1000 and hits.sum() > 5000 and chisquare(hits).pvalue > P_VALUE


@pytest.mark.parametrize("mode", ["whole_word", "ngram"])
def test_words_are_masked_whole(pieces, mode):
    batch = open_train(pieces, masking=mode, mask_rate_start=0.2).batch(range(500))
    real, masked = originals(batch), is_masked(batch)
    after_special = torch.isin(real, torch.tensor([2, 3])).roll(1)
    # Truncation may begin a text inside a word: that piece is a word of its own.
    inner = (real >= 5 + WORDS) & ~after_special
    assert inner.sum() > 5000
    assert (masked == masked.roll(1))[inner].all()
    numbers = torch.bincount(batch.sequence[masked], minlength=500)
    wanted = torch.tensor([num_to_mask(n, 0.2, n) for n in batch.lengths])
    assert (numbers <= wanted).float().mean() > 0.99  # more only where a single word is longer
    assert numbers.sum() > 0.97 * wanted.sum()


def test_ngrams_mask_neighbours_more_often(pieces):
    """Masked words with a masked right neighbour: 15 % for single words, far more in runs of up to three."""

    def share(mode):
        batch = open_train(pieces, masking=mode, mask_rate_start=0.15, mask_rate_end=0.15, mask_rate_steps=1).batch(
            range(500)
        )
        starts = is_masked(batch) & (originals(batch) < 5 + WORDS)
        return float((starts[:-1] & starts[1:]).sum() / starts.sum())

    # Mean of 1/n-weighted runs of 1..3 is 18/11 words: 7 of 18 words have a successor in their own run.
    assert share("ngram") > 2.5 * share("whole_word")


def test_byte_level_words_begin_with_a_space(tmp_path):
    """In RoBERTa's vocabulary every w-token begins a word and every c-token continues one."""
    documents = [[[4, 404, 405, 5, 6, 406] * 8] * 3 for _ in range(4)]
    prefix = write_shards(tmp_path / "bytes", documents, toy_roberta_tokenizer())
    dataset = open_train(prefix, model_type="roberta", masking="whole_word", seq_length=64)
    assert dataset.special.word_start[[0, 4, 5, 404]].tolist() == [True, True, True, False]
    batch = dataset.batch(range(64))
    real, masked = originals(batch), is_masked(batch)
    continues = (real >= 404) & (real < 604) & (batch.position != 1)
    assert continues.sum() > 500 and (masked == masked.roll(1))[continues].all()


@pytest.mark.parametrize("sampler", ["cpp", "python"])
def test_mask_rate_of_every_fifth_of_training(pieces, sampler):
    num = 5000 if sampler == "cpp" else 500
    dataset = open_train(pieces, train_samples=num, sampler=sampler)
    for fifth, rate in enumerate((0.05, 0.10, 0.15, 0.20, 0.25)):
        samples = range(fifth * num // 5, (fifth + 1) * num // 5)
        batch = dataset.batch(samples)
        assert batch.masked_counts == tuple(max(1, round(n * rate)) for n in batch.lengths)
        assert {dataset.settings.mask_rate(g) for g in samples} == {rate}
    assert dataset.settings.mask_rate(num + 10) == 0.25  # beyond the end


def test_masks_depend_on_the_global_sample_index_alone(pieces):
    dataset = open_train(pieces)
    whole, alone = dataset.batch(range(40)), dataset.batch([17])
    assert sequences(whole)[17] == sequences(alone)[0]
    # The same text comes back in the next epoch under another mask.
    assert not torch.equal(dataset.batch([18]).masked_positions, alone.masked_positions)
