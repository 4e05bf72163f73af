"""The flat micro-batch: a complete worked example, its parts as separate batches, and facts that stay on the host."""

import numpy as np
import pytest
import torch

from megatron_alum.data.sampling.batch import rounded_up
from tests.data.sampling.builders import (
    TOKENIZERS,
    assert_same_batches,
    open_train,
    sequences,
    toy_bert_tokenizer,
    toy_corpus,
    write_shards,
)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    return {
        kind: open_train(toy_corpus(folder / kind, 30, kind=kind), model_type=kind, objective="nsp")
        for kind in TOKENIZERS
    }


def test_worked_example(tmp_path):
    """Two documents of one sentence each, so that each sample is one sentence paired with the other."""
    prefix = write_shards(tmp_path / "two", [[[11, 12, 13]], [[21, 22]]], toy_bert_tokenizer())
    dataset = open_train(prefix, seq_length=16, short_seq_prob=0.0)
    batch = dataset.batch([0, 1], multiple=12)
    tokens = batch.tokens.clone()
    tokens[batch.masked_positions] = batch.masked_labels
    pair, swapped = [2, 11, 12, 13, 3, 21, 22, 3], [2, 21, 22, 3, 11, 12, 13, 3]
    first_is_pair = tokens[1] == 11
    both = pair + swapped if first_is_pair else swapped + pair
    assert tokens.tolist() == both + [0] * 8
    types = {True: [0, 0, 0, 0, 0, 1, 1, 1], False: [0, 0, 0, 0, 1, 1, 1, 1]}
    assert batch.token_types.tolist() == types[bool(first_is_pair)] + types[not first_is_pair] + [0] * 8
    assert batch.position.tolist() == [*range(8), *range(8)] + [0] * 8
    assert batch.sequence.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert batch.cu_seqlens.tolist() == [0, 8, 16]
    assert batch.lengths == (8, 8) and batch.num_tokens == 16 and batch.num_sequences == 2
    assert batch.masked_counts == (1, 1) and batch.num_masked_tokens == 2  # 5 % of 8, at least one
    assert batch.nsp_labels.tolist() == [1, 1] and batch.sample_index.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("multiple", [1, 8, 24, 4096])
def test_rows_agree_with_each_other(datasets, kind, multiple):
    """Every field against plain Python over the lengths; the tail holds pads and nothing points into it."""
    dataset = datasets[kind]
    for samples in ([7], range(40, 61)):
        batch = dataset.batch(list(samples), num_adversarial=1, multiple=multiple)
        real, size = batch.num_tokens, len(batch.tokens)
        assert size % multiple == 0 and 0 <= size - real < multiple
        owners = [b for b, n in enumerate(batch.lengths) for _ in range(n)]
        assert batch.sequence.tolist() == owners + [len(samples)] * (size - real)
        places = [place for n in batch.lengths for place in range(n)]
        assert batch.position.tolist() == places + [0] * (size - real)
        assert batch.cu_seqlens.tolist() == np.cumsum([0, *batch.lengths]).tolist()
        assert set(batch.tokens[real:].tolist()) <= {dataset.special.pad}
        assert not batch.token_types[real:].any()
        counts = torch.bincount(batch.sequence[batch.masked_positions], minlength=len(samples))
        assert tuple(counts.tolist()) == batch.masked_counts and (batch.masked_positions < real).all()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_leading_sequences_are_the_batch_of_their_samples(datasets, kind, multiple):
    dataset, samples = datasets[kind], [3, 9, 27, 4, 5, 6]
    whole = dataset.batch(samples, num_adversarial=3, multiple=8)
    for size in range(len(samples) + 1):
        part = whole.leading(size, multiple)
        assert part.num_sequences == size and part.num_adversarial == min(3, size)
        assert len(part.tokens) == rounded_up(part.num_tokens, multiple)
        if size:
            alone = dataset.batch(samples[:size], num_adversarial=min(3, size), multiple=multiple)
            assert_same_batches(part, alone)
    assert whole.num_adversarial_masked == whole.leading(3, 8).num_masked_tokens
    assert whole.leading(6, 8) is whole


def test_the_host_knows_without_asking_the_device(datasets):
    """On the meta device no value can be read: lengths, counts and parts are available nevertheless."""
    batch = datasets["bert"].batch(range(5), num_adversarial=2)
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    for name in (
        *("lengths", "masked_counts", "num_sequences", "num_tokens", "num_masked_tokens"),
        *("num_adversarial", "num_adversarial_masked"),
    ):
        assert getattr(moved, name) == getattr(batch, name)
    part, expected = moved.leading(2, 64), batch.leading(2, 64)
    assert part.lengths == expected.lengths and part.tokens.shape == expected.tokens.shape
    assert part.masked_positions.shape == expected.masked_positions.shape


def test_a_sequence_does_not_depend_on_its_neighbours(datasets):
    together = sequences(datasets["bert"].batch(range(20)))
    assert together == [sequences(datasets["bert"].batch([g]))[0] for g in range(20)]
