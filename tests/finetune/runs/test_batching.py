"""Batches of similar lengths: what they save, that nothing is lost or repeated, and that no process can disagree."""

import pytest
import torch

from megatron_alum.finetune.runs.batching import POOL_BATCHES, GroupedTrainer, LengthGroups, longest_first, num_tokens
from tests.finetune.methods.test_trainer import arguments
from tests.finetune.toy import tiny_model


def lengths_of(count):
    return torch.randint(3, 60, (count,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000, 8 * POOL_BATCHES + 3])
def test_every_index_once_an_epoch(count):
    sampler = LengthGroups(lengths_of(count), 8, seed=1)
    assert sorted(sampler) == list(range(count)) and len(sampler) == count


def test_order_is_of_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = LengthGroups(lengths_of(200), 8, seed)
        sampler.set_epoch(epoch)
        torch.rand(seed + epoch + 1)  # a process that has drawn other numbers before
        return list(sampler)

    assert order(1, 0) == order(1, 0) and order(1, 1) == order(1, 1)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


def test_little_padding_and_no_order_of_lengths():
    lengths = lengths_of(8 * POOL_BATCHES * 2)
    batches = torch.tensor([lengths[i] for i in LengthGroups(lengths, 8, seed=0)]).view(-1, 8)
    longest = batches.max(dim=1).values
    assert (longest * 8).sum() < 1.05 * sum(lengths)
    # Shuffled: the correlation of place and length is noise, 1 / sqrt(100) a standard deviation.
    places = torch.arange(len(longest), dtype=torch.float)
    assert abs(torch.corrcoef(torch.stack([places, longest.float()]))[0, 1]) < 0.3


def test_tokens_of_a_choice_are_those_of_its_longest_candidate():
    features = [{"input_ids": [1, 2]}, {"input_ids": [[1], [1, 2, 3]]}]
    assert [num_tokens(feature) for feature in features] == [2, 3]
    assert longest_first(features) == features[::-1]


def test_trainer_hands_the_epoch_to_the_sampler(tmp_path):
    """accelerate's loader calls set_epoch: two epochs have two orders."""
    features = [{"input_ids": [5] * n, "labels": 0} for n in lengths_of(64)]
    trainer = GroupedTrainer(
        model=tiny_model("classification"), args=arguments(tmp_path), train_dataset=features, method="none"
    )
    trainer.data_collator = lambda rows: {"length": torch.tensor([len(row["input_ids"]) for row in rows])}
    loader = trainer.get_train_dataloader()
    orders = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        orders.append(torch.cat([batch["length"] for batch in loader]).tolist())
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
