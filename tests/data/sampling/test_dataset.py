"""Samples by global index: options and their errors, splits, blends, epochs, and layouts of BERT and RoBERTa."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_alum.config.data import DataConfig
from megatron_alum.data.sampling.blend import BLOCK_SAMPLES, Blend, parse_data_path
from megatron_alum.data.sampling.dataset import open_datasets
from tests.data.sampling.builders import (
    epoch_rows,
    open_train,
    random_documents,
    sequences,
    toy_bert_tokenizer,
    toy_corpus,
    write_shards,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "sampling" / "samples.json").read_text())
"""Samples drawn before padding was removed; the first field says how."""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return toy_corpus(tmp_path_factory.mktemp("dataset") / "corpus", 60)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"data_path": ()}, "--data-path"),
        ({"mask_rate_start": 0.0}, "--mask-rate-start"),
        ({"mask_rate_end": 1.0}, "--mask-rate-end"),
        ({"mask_rate_steps": 0}, "--mask-rate-steps"),
        ({"mask_rate_steps": 1}, "--mask-rate-steps"),
        ({"short_seq_prob": 1.5}, "--short-seq-prob"),
        ({"max_ngram": 0}, "--max-ngram"),
        ({"sampler_threads": 0}, "--sampler-threads"),
        ({"prefetch_batches": 0}, "--prefetch-batches"),
        ({"split": "a,b"}, "--split"),
        ({"split": "0,0,0"}, "--split"),
        ({"split": "-1,2,0"}, "--split"),
        ({"split": "1,2,3,4"}, "--split"),
        ({"split": "nan,1,1"}, "--split"),
    ],
)
def test_wrong_options_are_named(options, flag):
    with pytest.raises(ValueError, match=flag):
        DataConfig(**{"data_path": ("corpus",), **options})


def test_derived_options():
    config = DataConfig(data_path=("corpus",))
    assert config.mask_rates == (0.05, 0.1, 0.15, 0.2, 0.25)
    assert config.split_shares == (0.949, 0.05, 0.001)
    assert [config.objective_for(t) for t in ("bert", "megatron-bert", "roberta")] == ["nsp", "nsp", "none"]
    assert DataConfig(data_path=("corpus",), objective="sop").objective_for("roberta") == "sop"
    constant = DataConfig(data_path=("corpus",), mask_rate_start=0.15, mask_rate_end=0.15, mask_rate_steps=1)
    assert constant.mask_rates == (0.15,)


@pytest.mark.parametrize(
    ("given", "prefixes", "weights"),
    [
        (("a",), ["a"], None),
        (("a", "b"), ["a", "b"], None),
        (("a", "b", "c"), ["a", "b", "c"], None),
        (("0.3", "a", "7", "b"), ["a", "b"], [0.3, 7.0]),
        (("1", "a"), ["a"], [1.0]),
    ],
)
def test_data_path_forms(given, prefixes, weights):
    assert parse_data_path(given) == (prefixes, weights)


@pytest.mark.parametrize(
    "given",
    [
        ("0.3", "a", "b", "c"),
        ("a", "0.7", "b"),
        ("0.3", "a", "b"),
        ("0.3", "a", "0.7"),
        ("0.3", "0.7", "a"),
        ("0.3",),
        ("0", "a"),
        ("-1", "a", "2", "b"),
        ("inf", "a"),
    ],
)
def test_wrong_data_paths(given):
    with pytest.raises(ValueError, match="--data-path"):
        parse_data_path(given)


def test_a_shard_may_be_named_by_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024.idx").touch()
    assert parse_data_path(("2024",)) == (["2024"], None)
    assert parse_data_path(("2024", "a")) == (["2024", "a"], None)
    assert parse_data_path(("3", "2024", "1", "a")) == (["2024", "a"], [3.0, 1.0])


def test_splits_are_megatron_cores(prefix):
    from megatron.core.datasets.blended_megatron_dataset_config import (
        convert_split_vector_to_split_matrix,
        parse_and_normalize_split,
    )

    for split in ("949,50,1", "90,10,0", "1,1,1", "98,1.5,0.5", "7,0,3", "100"):
        shares = DataConfig(data_path=("corpus",), split=split).split_shares
        matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
        for number in (1, 2, 3, 60, 61, 1000, 6_400_001):
            ends = [round(sum(shares[: i + 1]) * number) for i in range(3)]
            begins = [0, *ends[:2]]
            for begin, end, theirs in zip(begins, ends, matrix, strict=True):
                if theirs is None:
                    assert begin == end
                else:
                    assert (begin, end) == tuple(round(bound * float(number)) for bound in theirs)


def test_held_out_documents_are_never_trained_on(prefix):
    opened = open_datasets(
        DataConfig(data_path=(prefix,), split="80,15,5"), model_type="bert", seq_length=64, train_samples=10, seed=1
    )
    ranges = []
    for dataset in (opened.train, opened.valid, opened.test):
        (shard,) = dataset.shards
        rows = epoch_rows(shard)
        bounds, starts = shard.sentences.bounds, shard.sentences.offsets // 2
        low = starts[bounds[shard.sentences.first]]
        ranges.append((int(low), int(low) + int(shard.text_tokens())))
        for name in ("a", "b"):
            assert (rows[f"{name}_start"] >= ranges[-1][0]).all()
            assert (rows[f"{name}_start"] + rows[f"{name}_length"] <= ranges[-1][1]).all()
    assert ranges[0][0] == 0 and ranges[0][1] == ranges[1][0] and ranges[1][1] == ranges[2][0]


def test_held_out_masks_keep_one_rate_and_differ_from_training(prefix):
    opened = open_datasets(
        DataConfig(data_path=(prefix,), split="50,50,0"), model_type="bert", seq_length=64, train_samples=99, seed=1
    )
    assert {opened.valid.settings.mask_rate(g) for g in (0, 50, 98, 500)} == {0.15}
    assert opened.test is None
    batch = opened.valid.batch(range(64))
    assert batch.masked_counts == tuple(max(1, round(n * 0.15)) for n in batch.lengths)


def test_one_document_cannot_have_a_random_next(tmp_path, caplog):
    prefix = toy_corpus(tmp_path / "one", 1)
    with pytest.raises(ValueError, match=r"at least 2 documents.*--objective sop or none"):
        open_train(prefix)
    assert set(open_train(prefix, objective="sop").batch(range(50)).nsp_labels.tolist()) == {0, 1}
    assert set(open_train(prefix, objective="none").batch(range(50)).nsp_labels.tolist()) == {-100}
    prefix = toy_corpus(tmp_path / "three", 3)
    opened = open_datasets(
        DataConfig(data_path=(prefix,), split="2,1,0"), model_type="bert", seq_length=64, train_samples=9, seed=1
    )
    assert opened.valid is None and "NSP needs 2" in caplog.text


def test_split_without_training_documents(prefix):
    with pytest.raises(ValueError, match="--split must leave documents for training"):
        open_train(prefix, split="0,1,1")


def test_documents_without_sentences_do_not_count(tmp_path):
    documents = random_documents(10)
    with_empty = [[], *documents[:4], [], [], *documents[4:], []]
    plain = open_train(write_shards(tmp_path / "plain", documents, toy_bert_tokenizer()))
    holes = open_train(write_shards(tmp_path / "holes", with_empty, toy_bert_tokenizer()))
    assert torch.equal(plain.batch(range(60)).tokens, holes.batch(range(60)).tokens)


def test_a_corpus_without_text(tmp_path):
    prefix = write_shards(tmp_path / "empty", [[], []], toy_bert_tokenizer())
    with pytest.raises(ValueError, match="at least one sentence"):
        open_train(prefix)


@pytest.mark.parametrize(
    ("name", "value"), [("seq_length", 7), ("seq_length", 40_000), ("train_samples", 0), ("seed", -1)]
)
def test_wrong_settings_are_named(prefix, name, value):
    flag = {"seq_length": "--seq-length", "train_samples": "--train-iters", "seed": "--seed"}[name]
    with pytest.raises(ValueError, match=flag):
        open_train(prefix, **{name: value})


@pytest.mark.parametrize("sampler", ["cpp", "python"])
def test_each_sample_comes_once_an_epoch(prefix, sampler):
    dataset = open_train(prefix, sampler=sampler)
    (size,) = dataset.samples_per_epoch()
    (shard,) = dataset.shards
    rows = [shard.locate(g) for g in range(size)]
    assert {epoch for epoch, _ in rows} == {0}
    assert sorted(row for _, row in rows) == list(range(size))
    assert [row for _, row in rows] != list(range(size))
    assert shard.locate(size)[0] == 1
    second = len(shard.epochs[1].rows)
    assert {shard.locate(size + i)[1] for i in range(second)} == set(range(second))
    # What the batches hold is what the rows say: as many tokens as one pass over the index.
    tokens = sum(dataset.batch(range(i, min(i + 64, size))).num_tokens for i in range(0, size, 64))
    lengths = shard.epochs[0].rows
    assert tokens == int(lengths["a_length"].sum()) + int(lengths["b_length"].sum()) + 3 * size


def test_blend_holds_its_weights_over_any_stretch():
    blend = Blend.of([3.0, 1.0, 0.5])
    shards = np.array([blend.locate(g)[0] for g in range(2000)])
    for begin in (0, 333, 1500):
        counts = np.bincount(shards[begin : begin + 450], minlength=3)
        assert np.abs(counts - np.array([300, 100, 50])).max() <= 2


def test_blend_numbers_each_shards_samples_in_order():
    blend = Blend.of([0.7, 0.3])
    seen = [[], []]
    for g in range(BLOCK_SAMPLES + 5000):
        shard, sample = blend.locate(g)
        seen[shard].append(sample)
    assert all(numbers == list(range(len(numbers))) for numbers in seen)
    assert abs(len(seen[0]) / (BLOCK_SAMPLES + 5000) - 0.7) < 1e-4


def test_blend_refuses_a_weight_it_cannot_hold():
    with pytest.raises(ValueError, match="shard 1 has less"):
        Blend.of([1.0, 1e-9])


def test_unweighted_shards_are_drawn_by_their_tokens(prefix, tmp_path):
    small = toy_corpus(tmp_path / "small", 15, seed=9)
    dataset = open_train((prefix, small))
    tokens = [shard.text_tokens() for shard in dataset.shards]
    shares = dataset.blend.counts / dataset.blend.counts.sum()
    assert np.allclose(shares, np.array(tokens) / sum(tokens), atol=1e-4)
    weighted = open_train(("1", prefix, "3", small))
    assert (weighted.blend.counts == np.array([1, 3]) * BLOCK_SAMPLES // 4).all()


def test_shards_of_two_tokenizers_do_not_mix(prefix, tmp_path):
    other = toy_corpus(tmp_path / "other", 5, kind="roberta")
    with pytest.raises(ValueError, match="one tokenizer"):
        open_train((prefix, other))


def test_layout_of_bert_pairs(prefix):
    batch = open_train(prefix, seq_length=32, mask_rate_start=0.01, mask_rate_end=0.01, mask_rate_steps=1).batch(
        range(20)
    )
    for row in sequences(batch):
        ids, first = row.originals, row.originals.index(3)
        assert ids[0] == 2 and ids[-1] == 3 and ids.count(3) == 2 and len(ids) <= 32
        assert row.token_types == [0] * (first + 1) + [1] * (len(ids) - first - 1)


def test_layout_of_roberta_pairs_and_full_sentences(tmp_path):
    prefix = toy_corpus(tmp_path / "roberta", 30, kind="roberta")
    options = {"model_type": "roberta", "seq_length": 32}
    dataset = open_train(prefix, objective="nsp", **options)
    assert (dataset.special.cls, dataset.special.sep, dataset.special.pad, dataset.special.mask) == (0, 2, 1, 604)
    batch = dataset.batch(range(20))
    assert batch.token_types.sum() == 0
    for row in sequences(batch):
        ids, middle = row.originals, row.originals.index(2)
        assert ids[0] == 0 and ids[middle + 1] == 2 and ids[-1] == 2 and ids.count(2) == 3
    packed = open_train(prefix, model_type="roberta", seq_length=128)  # auto: full sentences
    batch = packed.batch(range(150), multiple=1024)
    closed = [row.originals.count(2) for row in sequences(batch)]
    assert min(closed) == 1 and max(closed) > 1 and set(batch.nsp_labels.tolist()) == {-100}
    tail = batch.sequence == 150
    assert tail.any() and (batch.tokens[tail] == 1).all() and (batch.tokens[~tail] != 1).all()
    assert max(batch.lengths) <= 128 and np.mean(batch.lengths) > 90  # full rows: packing needs no placement


def test_batch_has_the_promised_shapes_and_types(prefix):
    batch = open_train(prefix, seq_length=64).batch([5, 3, 9], multiple=40)
    num_tokens = batch.num_tokens + (-batch.num_tokens) % 40
    for name in ("tokens", "token_types", "position", "sequence"):
        assert getattr(batch, name).shape == (num_tokens,)
    assert batch.cu_seqlens.dtype == torch.int32 and batch.cu_seqlens.shape == (4,)
    for name in batch.tensors().keys() - {"cu_seqlens"}:
        assert getattr(batch, name).dtype == torch.int64
    assert batch.sample_index.tolist() == [5, 3, 9] and batch.num_sequences == 3
    assert batch.masked_positions.shape == batch.masked_labels.shape == (batch.num_masked_tokens,)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
@pytest.mark.parametrize("objective", ["nsp", "sop", "none"])
@pytest.mark.parametrize("masking", ["token", "whole_word", "ngram"])
def test_samples_are_those_of_padded_rows(golden_shards, tmp_path, model_type, objective, masking):
    """What a sample holds is what it held when rows were padded: tokens, types, masked positions, labels."""
    cases = {"model_type": model_type, "objective": objective, "masking": masking}
    digests = golden_digests(open_golden(golden_shards[model_type], tmp_path, sampler="cpp", **cases))
    assert digests == GOLDEN["digests"][f"{model_type} {objective} {masking}"]


@pytest.mark.parametrize("sampler", ["cpp", "python"])
def test_samples_of_a_blend_are_those_of_padded_rows(golden_shards, tmp_path, sampler):
    path = ("1", golden_shards["bert"], "2.5", golden_shards["second"])
    assert golden_digests(open_golden(path, tmp_path, sampler=sampler)) == GOLDEN["digests"]["blend"]


def test_two_samples_to_read(golden_shards, tmp_path):
    rows = sequences(open_golden(golden_shards["bert"], tmp_path).batch([600, 601]))
    assert [golden_row(row) for row in rows] == GOLDEN["first_two_of_bert_nsp_token"]


@pytest.fixture(scope="module")
def golden_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    made = {kind: toy_corpus(folder / kind, 40, kind=kind, seed=16) for kind in ("bert", "roberta")}
    return {**made, "second": toy_corpus(folder / "second", 15, seed=9)}


def open_golden(path, folder, **options):
    return open_train(path, seq_length=64, train_samples=700, data_cache_path=str(folder / "cache"), **options)


def golden_digests(dataset):
    rows = sequences(dataset.batch(range(600, 632)))
    texts = [json.dumps(golden_row(row), separators=(",", ":")) for row in rows]
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def golden_row(row):
    return [row.tokens, row.token_types, row.masked, row.labels, row.nsp_label]
