"""The sampler on real text: the shared Wikipedia extract, BERT's own vocabulary, sequence length 128.

A crude splitter (a full stop and a space) stands in for the preprocessor's, so that these figures are the sampler's.
"""

import random

import numpy as np
import pytest
from scipy.stats import chisquare

from megatron_alum.data.sampling.placement import BatchPlan
from megatron_alum.data.tokenizers.tokenizer import make_tokenizer
from megatron_alum.data.tokenizers.vocabulary import TokenizerSource
from tests.data.sampling.builders import assert_same_batches, epoch_rows, open_train, wikipedia_documents, write_shards
from tests.data.sampling.oracle import google_pairs

pytestmark = pytest.mark.requires_shared_data
P_VALUE = 1e-3


@pytest.fixture(scope="module")
def wikipedia(shared_data, tmp_path_factory):
    """(prefix, documents as lists of sentence lengths)."""
    source = TokenizerSource(vocab_file=shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    tokenizer = make_tokenizer(source)
    documents = wikipedia_documents(shared_data, num_files=3)
    flat = tokenizer.backend_tokenizer.encode_batch_fast([s for d in documents for s in d], add_special_tokens=False)
    ids = iter([encoding.ids for encoding in flat])
    encoded = [[sentence for sentence in (next(ids) for _ in document) if sentence] for document in documents]
    encoded = [document for document in encoded if document]
    prefix = write_shards(tmp_path_factory.mktemp("wikipedia") / "wiki", encoded, tokenizer)
    return prefix, [[len(sentence) for sentence in document] for document in encoded]


def test_share_of_random_pairs_is_that_of_googles_algorithm(wikipedia):
    """About 0.58: half the pairs, and all of the 16 % of chunks that are one sentence."""
    prefix, lengths = wikipedia
    rows, rng = epoch_rows(open_train(prefix).shards[0]), random.Random(0)
    single = np.mean([p.single for d in range(len(lengths)) for p in google_pairs(lengths, d, 125, 0.1, rng)])
    assert abs(rows["label"].mean() - (0.5 + single / 2)) < 4 * 0.5 / len(rows) ** 0.5
    assert 0.55 < rows["label"].mean() < 0.62


def test_number_and_filling_of_samples_are_those_of_googles_algorithm(wikipedia):
    """Without short targets, of which one in a long article moves the number of samples of a pass by some per cent."""
    prefix, lengths = wikipedia
    rows, rng = epoch_rows(open_train(prefix, short_seq_prob=0.0).shards[0]), random.Random(0)
    theirs = [pair for d in range(len(lengths)) for pair in google_pairs(lengths, d, 125, 0.0, rng)]
    assert abs(len(rows) / len(theirs) - 1) < 0.01
    filled = (rows["a_length"].astype(int) + rows["b_length"]).mean()
    assert abs(filled - np.mean([p.a_length + p.b_length for p in theirs])) < 1.0  # tokens, of 125


def test_no_random_pair_is_the_true_continuation(wikipedia):
    prefix, lengths = wikipedia
    rows = epoch_rows(open_train(prefix).shards[0])
    ends = np.cumsum([sum(document) for document in lengths])
    a_document, b_document = (np.searchsorted(ends, rows[name], side="right") for name in ("a_start", "b_start"))
    assert ((a_document == b_document) == (rows["label"] == 0)).all()


def test_masks_of_a_run_over_real_text(wikipedia):
    """Rates by fifth exactly, 80/10/10 by chi-square, pieces of a word together under whole-word masking."""
    prefix, _ = wikipedia
    dataset = open_train(prefix, train_samples=5000)
    for fifth, rate in enumerate((0.05, 0.1, 0.15, 0.2, 0.25)):
        batch = dataset.batch(range(fifth * 1000, fifth * 1000 + 1000))
        assert batch.masked_counts == tuple(max(1, round(n * rate)) for n in batch.lengths)
        given, label = batch.tokens[batch.masked_positions], batch.masked_labels
        to_mask, kept = int((given == dataset.special.mask).sum()), int((given == label).sum())
        expected = np.array([0.8, 0.1, 0.1]) * len(label)
        assert chisquare([to_mask, kept, len(label) - to_mask - kept], expected).pvalue > P_VALUE
    batch = open_train(prefix, masking="whole_word").batch(range(1000))
    real = batch.tokens.clone()
    real[batch.masked_positions] = batch.masked_labels
    masked = np.zeros(real.shape, dtype=bool)
    masked[batch.masked_positions] = True
    continues = ~dataset.special.word_start[real.numpy()]
    after_special = np.isin(np.roll(real.numpy(), 1), [dataset.special.cls, dataset.special.sep])
    inner = continues & ~after_special
    assert inner.sum() > 5000 and (masked == np.roll(masked, 1))[inner].all()


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_ranks_have_equal_tokens(wikipedia, fraction):
    """Two ranks, 512 positions, 16 sequences each: under 3 % apart from their mean in every iteration of an epoch.

    Neighbours in the random order, as ranks would take without placement, are some 20 % apart.
    """
    dataset = open_train(wikipedia[0], seq_length=512)
    plan = BatchPlan(16, 32, dp_size=2, alum_batch_fraction=fraction)
    starts = range(0, dataset.samples_per_epoch()[0] - 32, 32)
    placed = [plan.iteration(dataset, g).imbalance for g in starts]
    halves = [dataset.measure(range(g, g + 32))[0].reshape(2, 16).sum(1) for g in starts]
    neighbours = [tokens.max() / tokens.mean() - 1 for tokens in halves]
    assert len(starts) > 50 and max(placed) < 0.03
    assert np.mean(neighbours) > 0.05 and np.mean(neighbours) > 20 * np.mean(placed)


def test_real_text_is_bit_equal_in_both_implementations(wikipedia, tmp_path):
    prefix, _ = wikipedia
    cpp, python = (open_train(prefix, sampler=s, data_cache_path=str(tmp_path / s)) for s in ("cpp", "python"))
    for begin in (0, 3000):
        assert_same_batches(cpp.batch(range(begin, begin + 200)), python.batch(range(begin, begin + 200)))
    assert cpp.shards[0].epochs[0].rows.tobytes() == python.shards[0].epochs[0].rows.tobytes()
