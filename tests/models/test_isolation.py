"""Sequences of a batch do not affect each other: neither by their values, finite or not, nor by their number.

Bit for bit on the CPU: the results for a sequence do not depend on its batch at all.
"""

import pytest
import torch

from megatron_alum.models import build_model
from tests.models.batches import VOCAB_SIZE, make_batch, small_config
from tests.models.huggingface import randomize_whole
from tests.models.tolerances import JAGGED_RTOL

# Two of equal length, which are batched, one of a single token, and a tail of 5 tokens.
LENGTHS = (16, 9, 16, 1, 7, 12, 2)
ATTENTIONS = ["native", "jagged"]
TYPES = ["megatron-bert", "bert", "roberta"]


def network(groups, model_type, attention):
    model = build_model(small_config(model_type), vocab_size=VOCAB_SIZE, groups=groups, attention=attention)
    randomize_whole(model, groups)
    return model


def parts_of(tensor, batch):
    """The real tokens' rows of [T, 1, H], a tensor for each sequence."""
    return tensor[batch.is_real, 0].split(batch.lengths)


def states_and_gradients(model, batch, x=None):
    """Of each sequence: hidden states, and the gradient in x of a function of them."""
    x = model.embed(batch.inputs) if x is None else x
    leaf = x.detach().requires_grad_()
    hidden = model.encode(leaf, batch.inputs)
    (gradient,) = torch.autograd.grad(hidden[batch.is_real].sin().sum(), leaf)
    return list(zip(parts_of(hidden.detach(), batch), parts_of(gradient, batch), strict=True))


def assert_same(found, expected, attention):
    for a, b in zip(found, expected, strict=True):
        limit = 0.0 if attention == "native" else JAGGED_RTOL * float(b.nan_to_num().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=limit)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("model_type", TYPES)
def test_changing_one_sequence_changes_no_other(groups, model_type, attention):
    model, batch = network(groups, model_type, attention), make_batch(model_type, LENGTHS)
    before = states_and_gradients(model, batch)
    for changed in range(len(LENGTHS)):
        other = make_batch(model_type, LENGTHS)
        own = other.sequence == changed
        other.tokens[own] = (other.tokens[own] - 4) % (VOCAB_SIZE - 5) + 5
        after = states_and_gradients(model, other)
        for number, (found, expected) in enumerate(zip(after, before, strict=True)):
            if number == changed:
                assert (found[0] - expected[0]).abs().amax(dim=1).min() > 1e-3
            else:
                assert_same(found, expected, "native")  # the same shapes: bit-equal on both backends


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("model_type", TYPES)
def test_a_sequence_alone_gives_what_it_gives_in_a_batch(groups, model_type, attention):
    model, batch = network(groups, model_type, attention), make_batch(model_type, LENGTHS)
    together = states_and_gradients(model, batch)
    for number, expected in enumerate(together):
        (found,) = states_and_gradients(model, batch.alone(number))
        assert_same(found, expected, attention)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_is_not_finite_stays_in_its_sequence(groups, attention):
    """It does not reach a sequence of the same length either; the tail may hold anything."""
    model, batch = network(groups, "megatron-bert", attention), make_batch("megatron-bert", LENGTHS)
    expected = states_and_gradients(model, batch)
    x = model.embed(batch.inputs).detach()
    x[3] = float("nan")
    x[~batch.is_real] = float("inf")
    found = states_and_gradients(model, batch, x)
    assert found[0][0].isnan().all() and found[0][1].isnan().all()
    for number in range(1, len(LENGTHS)):
        assert_same(found[number], expected[number], attention)


@pytest.mark.parametrize("multiple", [1, 8, 64, 200])
def test_the_length_of_the_tail_changes_nothing(groups, multiple):
    model = network(groups, "bert", "native")
    expected = states_and_gradients(model, make_batch("bert", LENGTHS, multiple=1))
    for found, wanted in zip(
        states_and_gradients(model, make_batch("bert", LENGTHS, multiple=multiple)), expected, strict=True
    ):
        assert_same(found, wanted, "native")


@pytest.mark.parametrize("lengths", [(5, 0, 3), (), (20, 21), (-1, 5)])
def test_lengths_that_do_not_fit_are_refused(lengths):
    batch = make_batch("bert", (16, 16, 8), multiple=8)
    batch.lengths = lengths
    with pytest.raises(ValueError, match=r"`lengths` must be positive and add up to at most 40 tokens, but is \("):
        _ = batch.inputs
