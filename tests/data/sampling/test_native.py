"""The C++ sampler against the Python reference: every row and every byte of every batch, over all options."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_alum.config.data import DataConfig
from megatron_alum.data.sampling import native
from megatron_alum.data.sampling.dataset import open_datasets
from megatron_alum.data.sampling.masking import mask_words
from megatron_alum.data.sampling.native import BatchBuffers, choose_sampler
from megatron_alum.data.sampling.sample import build_sample
from tests.data.sampling.builders import (
    TOKENIZERS,
    assert_same_batches,
    open_train,
    random_documents,
    sequences,
    toy_bert_tokenizer,
    toy_corpus,
    write_shards,
)
from tests.helpers.pairs import pairs


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    made = {
        (kind, dtype): toy_corpus(folder / f"{kind}-{dtype.__name__}", 40, kind=kind, dtype=dtype)
        for kind in TOKENIZERS
        for dtype in (np.uint16, np.int32)
    }
    made["second"] = toy_corpus(folder / "second", 15, seed=9)
    return made


def test_the_extension_is_built():
    assert choose_sampler("cpp") == "cpp"


@pytest.mark.parametrize(
    *pairs(
        objective=["nsp", "sop", "none"],
        masking=["token", "whole_word", "ngram"],
        model_type=["bert", "roberta"],
        dtype=[np.uint16, np.int32],
    )
)
def test_batches_are_bit_equal(shards, tmp_path, dtype, model_type, objective, masking):
    """Over the end of the curriculum (700) and, at sequence length 129, of the first epoch and its successors."""
    common = {"model_type": model_type, "objective": objective, "masking": masking}
    for seq_length in (16, 129):
        cpp, python = both(shards[model_type, dtype], tmp_path, **common, seq_length=seq_length, train_samples=700)
        for begin, multiple in ((0, 8), (160, 1), (320, 512), (480, 24), (640, 8)):
            samples, options = range(begin, begin + 16), {"num_adversarial": 5, "multiple": multiple}
            assert_same_batches(cpp.batch(samples, **options), python.batch(samples, **options))
            for a, b in zip(cpp.measure(samples), python.measure(samples), strict=True):
                assert a.dtype == b.dtype == np.int64 and np.array_equal(a, b)
        for a, b in zip(cpp.shards[0].epochs, python.shards[0].epochs, strict=True):
            assert a.rows.tobytes() == b.rows.tobytes()


@pytest.mark.parametrize("objective", ["nsp", "none"])
def test_no_more_is_masked_than_there_is_text(shards, tmp_path, objective):
    """At a rate of 99 %, where special tokens would be counted in, the number stops at the text."""
    rates = {"mask_rate_start": 0.99, "mask_rate_end": 0.99, "mask_rate_steps": 1}
    special = 3 if objective == "nsp" else 2
    for dataset in both(shards["bert", np.uint16], tmp_path, objective=objective, seq_length=24, **rates):
        batch = dataset.batch(range(200))
        lengths, masked = dataset.measure(range(200))
        assert tuple(lengths.tolist()) == batch.lengths and tuple(masked.tolist()) == batch.masked_counts
        inner = [row.originals[1:-1].count(3) for row in sequences(batch)]  # separators between texts
        text = [
            n - special - (ends if objective == "none" else 0) for n, ends in zip(lengths.tolist(), inner, strict=True)
        ]
        assert masked.tolist() == text


def both(prefix, folder, **options):
    """The same samples from the two implementations, each with a cache of its own."""
    opened = [
        open_train(prefix, sampler=impl, data_cache_path=str(folder / impl), short_seq_prob=0.5, **options)
        for impl in ("cpp", "python")
    ]
    assert opened[0].native and not opened[1].native
    return opened


def test_blends_are_bit_equal(shards, tmp_path):
    """Three shards of which the smallest goes through several epochs."""
    path = ("1", shards["bert", np.uint16], "2.5", shards["second"], "1", shards["bert", np.int32])
    cpp, python = both(path, tmp_path)
    for begin in (0, 200, 900):
        indices = range(begin, begin + 64)
        assert_same_batches(cpp.batch(indices), python.batch(indices))
    assert len(cpp.shards[1].epochs) > 1


def test_held_out_splits_are_bit_equal(shards):
    opened = []
    for impl in ("cpp", "python"):
        config = DataConfig(data_path=(shards["bert", np.uint16],), split="60,30,10", sampler=impl)
        opened.append(open_datasets(config, model_type="bert", seq_length=64, train_samples=50, seed=2**64 - 1))
    for split in ("train", "valid", "test"):
        cpp, python = (getattr(datasets, split) for datasets in opened)
        assert_same_batches(cpp.batch(range(60)), python.batch(range(60)))


def test_indices_beyond_32_bits(shards, tmp_path):
    """Sample 2^32 + 5 has a mask of its own and not that of sample 5."""
    cpp, python = both(shards["bert", np.uint16], tmp_path)
    for words in (mask_words(cpp.settings, 5), mask_words(cpp.settings, 2**32 + 5)):
        assert words.word() not in (0, 1 << 32)
    assert mask_words(cpp.settings, 5).word() != mask_words(cpp.settings, 2**32 + 5).word()
    text = [np.arange(5, 60), np.arange(60, 90)]
    samples = [
        build_sample(text, sample_index=g, paired=True, settings=python.settings, special=python.special)
        for g in (5, 2**32 + 5)
    ]
    assert samples[0].masked != samples[1].masked


def test_a_batch_that_is_kept_is_not_written_over(shards):
    dataset = open_train(shards["bert", np.uint16])
    first = dataset.batch(range(32))
    copy = first.tokens.clone()
    dataset.batch(range(32, 64))
    assert torch.equal(first.tokens, copy)


@pytest.mark.parametrize("objective", ["nsp", "none"])
@pytest.mark.parametrize(
    "change",
    [("a_start", 10**12), ("a_start", -5), ("a_length", 60_000), ("a_length", 0), ("b_start", -1)]
    + [(name, value) for name in ("a_start", "b_start") for value in (2**63 - 1, -(2**63))],
)
def test_a_row_that_points_nowhere_is_refused(shards, objective, change):
    """As when the file of a running process is damaged: one that is opened is compared with its checksum."""
    dataset = open_train(shards["bert", np.uint16], objective=objective, train_samples=1)
    dataset.samples_per_epoch()
    (shard,) = dataset.shards
    rows = np.array(shard.epochs[0].rows)
    rows[change[0]] = np.array(change[1]).astype(rows.dtype[change[0]])
    shard.epochs[0] = replace(shard.epochs[0], rows=rows)
    for ask in (dataset.batch, dataset.measure):
        with pytest.raises(ValueError, match="Delete the index-cache folder"):
            ask(range(8))


@pytest.mark.parametrize("sampler", ["cpp", "python"])
@pytest.mark.parametrize("objective", ["nsp", "none"])
@pytest.mark.parametrize(("dtype", "wrong"), [(np.uint16, 605), (np.uint16, 65535), (np.int32, 605), (np.int32, -1)])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path, dtype, wrong, objective, sampler):
    """The right size and the wrong content: file, document (empty ones counted) and remedy are named; ids up to the
    last of the vocabulary (604) pass."""
    documents = [[], *random_documents(6), [], [[9] * 20] * 3, *random_documents(4, seed=1)]
    prefix = write_shards(tmp_path / "corpus", documents, toy_bert_tokenizer(), dtype=dtype)
    place = sum(len(sentence) for document in documents[:8] for sentence in document) + 25
    ids = np.memmap(f"{prefix}.bin", dtype, mode="r+")
    ids[place] = 604
    ids.flush()
    options = {"objective": objective, "sampler": sampler, "seq_length": 64, "masking": "whole_word"}
    dataset = open_train(prefix, **options)
    (size,) = dataset.samples_per_epoch()
    assert 604 in {token for g in range(size) for text in dataset.texts(g) for token in text.tolist()}
    dataset.batch(range(size))
    ids[place] = wrong
    ids.flush()
    words = rf"corpus.bin. must hold token ids from 0 to 604, but holds {wrong} at token {place}, in document 8\. .*"
    words += r"megatron-alum inspect \S*corpus --verify"
    for ask in (dataset.batch, dataset.measure):
        with pytest.raises(ValueError, match=words):
            ask(range(size))


def test_arguments_of_the_wrong_shape_are_refused(shards):
    dataset = open_train(shards["bert", np.uint16])
    small = BatchBuffers(2, 128)
    with pytest.raises(ValueError, match="room for 384 elements, but has 256"):
        dataset.native.fill(np.arange(3), small)
    with pytest.raises(ValueError, match="room for 1000 elements, but has 256"):
        dataset.native.fill(np.arange(2), small, multiple=1000)
    small.tokens = small.tokens.astype(np.int32)
    with pytest.raises(TypeError):
        dataset.native.fill(np.arange(2), small)


def test_missing_extension_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(native, "_data", None)
    monkeypatch.setattr(native, "_reason", "not built", raising=False)
    native._warn_once.cache_clear()
    assert [choose_sampler("auto"), choose_sampler("auto"), choose_sampler("python")] == ["python"] * 3
    assert caplog.text.count("Python reference") == 1
    with pytest.raises(ValueError, match="--sampler"):
        choose_sampler("cpp")
