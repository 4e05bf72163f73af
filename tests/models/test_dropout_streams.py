"""Which random stream decides a dropout of the layers when two ranks share them: the weights of a rank's own heads are
dropped from a stream of its own, hidden values that both ranks hold from the one that they share.
"""

import gc
import weakref
from functools import partial
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_alum.ops.cpu_dropout import draw_mask
from tests.helpers.distributed import run_ranks
from tests.models.batches import VOCAB_SIZE, make_batch, small_config


class Dropped(NamedTuple):
    """What a layer dropped on one rank."""

    weights: torch.Tensor
    """[tokens, width]: for each token and head the sum of the weights that dropout left"""
    output: torch.Tensor
    """of the layer: 0, 1 or 2 hidden dropouts have left its biases of 1, in the pre-LayerNorm network"""
    shared_moved: bool
    """whether the stream that the ranks share has"""
    own_moved: bool
    """and the rank's own"""
    following: torch.Tensor
    """the next number of the shared stream"""


def dropped(rank, world_size, model_type="megatron-bert", rows=False, as_on_a_gpu=False, training=True, **dropouts):
    """A layer whose values v are 1, with biases of 1 after the attention and the MLP and all other weights 0."""
    from megatron_alum.models import build_model, encoder
    from megatron_alum.parallel import initialize, seed_everything

    groups = initialize(tensor_parallel_size=world_size)
    seed_everything(5, groups)
    config = small_config(model_type, num_layers=1, **{"hidden_dropout": 0.25, "attention_dropout": 0.5, **dropouts})
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups).train(training)
    inputs, layer = make_batch(model_type).inputs, model.encoder.layers[0]
    for name, parameter in layer.named_parameters():
        torch.nn.init.constant_(parameter, float("layernorm.weight" in name))
    of_heads = layer.self_attention.linear_qkv.bias.detach().view(-1, 3, config.hidden_size // 4)
    of_heads[:, 2] = 1.0  # after q and k
    for linear in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
        torch.nn.init.constant_(linear.bias, 1.0)
    seen = []
    layer.self_attention.linear_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    model.encoder.final_layernorm = None
    x = torch.zeros(inputs.tokens.numel(), 1, config.hidden_size)
    before = streams()
    with mock.patch.object(encoder, "draw_dropout", draw_mask if as_on_a_gpu else encoder.draw_dropout):
        chosen = torch.arange(0, 30, 3) if rows else None
        output = model.encoder(x, sequences=inputs.sequences, rows=chosen).detach()
    moved = [not torch.equal(*states) for states in zip(before, streams(), strict=True)]
    real = sum(inputs.sequences.lengths)
    return Dropped(seen[0][:real], output if rows else output[:real], *moved, torch.rand(1))


def streams():
    """States of (the stream that the ranks share, the rank's own)."""
    return torch.get_rng_state(), get_cuda_rng_tracker().get_states()["model-parallel-rng"]


def dropped_by(world_size, **options):
    return run_ranks(world_size, partial(dropped, **options))


@pytest.mark.parametrize("as_on_a_gpu", [False, True], ids=["seeds", "masks"])
@pytest.mark.parametrize("rows", [False, True], ids=["all tokens", "chosen rows"])
@pytest.mark.parametrize("model_type", ["megatron-bert", "bert"])
def test_ranks_drop_weights_of_their_own_and_hidden_values_alike(model_type, rows, as_on_a_gpu):
    first, second = dropped_by(2, model_type=model_type, rows=rows, as_on_a_gpu=as_on_a_gpu)
    assert not torch.equal(first.weights, second.weights), "both ranks dropped the same weights"
    assert torch.equal(first.output, second.output) and torch.equal(first.following, second.following)
    assert first.shared_moved and first.own_moved
    if model_type == "megatron-bert":
        # Two biases of 1, each kept with 3 / 4 and then 4 / 3: all sums of the two occur, as often as they should.
        levels, counts = (3 * first.output / 4).round().unique(return_counts=True)
        assert levels.tolist() == [0, 1, 2]
        expected = torch.tensor([1, 6, 9]) / 16
        deviation = (expected * (1 - expected) / first.output.numel()).sqrt()
        assert ((counts / first.output.numel() - expected).abs() < 4 * deviation).all()


def test_dropout_of_weights_alone_leaves_the_shared_stream():
    first, second = dropped_by(2, hidden_dropout=0.0)
    assert not torch.equal(first.weights, second.weights)
    assert not first.shared_moved and not second.shared_moved and (first.output == 2).all()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("options", [{"training": False}, {"hidden_dropout": 0.0, "attention_dropout": 0.0}])
def test_without_dropout_nothing_is_drawn(world_size, options):
    """Validation included: how often there is one must not change the training after it."""
    for found in dropped_by(world_size, **options):
        assert not found.shared_moved and not found.own_moved
        assert torch.allclose(found.weights, torch.ones_like(found.weights)) and (found.output == 2).all()


def test_a_rank_of_its_own_has_one_stream():
    (found,) = dropped_by(1)
    assert found.shared_moved and not found.own_moved


def masks_alive(rank, world_size, recompute):
    """Masks of hidden values that exist between the forward and the backward pass, and all that were drawn by then."""
    from megatron_alum.models import build_model, encoder
    from megatron_alum.parallel import initialize, seed_everything

    groups = initialize(tensor_parallel_size=world_size)
    seed_everything(5, groups)
    config = small_config(hidden_dropout=0.2, attention_dropout=0.2)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups, recompute=recompute)
    inputs, drawn = make_batch(config.model_type).inputs, []

    def draw(*arguments):
        mask = draw_mask(*arguments)
        drawn.append(weakref.ref(mask))
        return mask

    with mock.patch.object(encoder, "draw_dropout", draw):
        output = model(inputs)
        gc.collect()
        alive = sum(mask() is not None for mask in drawn)
        output.mlm_logits.sum().backward()
    return alive, len(drawn)


def test_full_recomputation_keeps_no_masks():
    """Two layers with two masks each, drawn twice."""
    assert run_ranks(2, masks_alive, "full") == [(0, 8)] * 2
    assert run_ranks(2, masks_alive, "none") == [(4, 4)] * 2
