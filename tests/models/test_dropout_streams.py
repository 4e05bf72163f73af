"""Which random stream decides a dropout of the layers when two ranks share them: the weights of a rank's own heads are
dropped from a stream of its own, hidden values that both ranks hold from the one that they share.
"""

from unittest import mock

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.models.batches import VOCAB_SIZE, make_batch, small_config

ALL_ONE, NOTHING = 1.0, 0.0


def draw_mask(shape, probability, device):
    """`ops.draw_dropout` as it is on a GPU: a mask in place of a seed."""
    return torch.empty(shape, dtype=torch.bool).bernoulli_(1 - probability)


def dropped(rank, world_size, hidden_dropout, attention_dropout, as_on_a_gpu):
    """A layer whose values v are 1 and whose other weights are 0, on an x of 0: (sums of the weights that dropout left
    each head, the layer's output, whether the shared stream moved, its next number).

    The MLP's output is its bias of 1, and so is the attention's, so that the layer's output shows the hidden dropouts.
    """
    from megatron_alum.models import build_model, encoder
    from megatron_alum.parallel import initialize, seed_everything

    groups = initialize(tensor_parallel_size=world_size)
    seed_everything(5, groups)
    config = small_config(num_layers=1, hidden_dropout=hidden_dropout, attention_dropout=attention_dropout)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups)
    inputs = make_batch(config.model_type).inputs
    layer = model.encoder.layers[0]
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, NOTHING)
    attention, mlp = layer.self_attention, layer.mlp
    of_heads = attention.linear_qkv.bias.detach().view(-1, 3, config.hidden_size // config.num_attention_heads)
    of_heads[:, 2] = ALL_ONE  # after q and k
    for linear in (attention.linear_proj, mlp.linear_fc2):
        torch.nn.init.constant_(linear.bias, ALL_ONE)
    seen = []
    attention.linear_proj.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    model.encoder.final_layernorm = None
    before = torch.get_rng_state()
    x = torch.zeros(inputs.tokens.numel(), 1, config.hidden_size)
    with mock.patch.object(encoder, "draw_dropout", draw_mask if as_on_a_gpu else encoder.draw_dropout):
        output = model.encoder(x, sequences=inputs.sequences)
    moved = not torch.equal(torch.get_rng_state(), before)
    real = sum(inputs.sequences.lengths)
    return seen[0][:real], output.detach()[:real], moved, torch.rand(1)


@pytest.mark.parametrize("as_on_a_gpu", [False, True], ids=["seeds", "masks"])
def test_ranks_drop_weights_of_their_own_and_hidden_values_alike(as_on_a_gpu):
    (first, output, moved, following), (second, second_output, _, second_following) = run_ranks(
        2, dropped, 0.25, 0.5, as_on_a_gpu
    )
    assert not torch.equal(first, second), "both ranks dropped the same weights"
    assert torch.equal(output, second_output) and torch.equal(following, second_following) and moved
    # Two biases of 1, each kept with 3 / 4 and then 4 / 3: all sums of the two occur, about as often as they should.
    levels, counts = (3 * output / 4).round().unique(return_counts=True)
    assert levels.tolist() == [0, 1, 2]
    expected = torch.tensor([1, 6, 9]) / 16
    deviation = (expected * (1 - expected) / output.numel()).sqrt()
    assert ((counts / output.numel() - expected).abs() < 4 * deviation).all()


def test_dropout_of_weights_alone_leaves_the_shared_stream():
    (first, output, moved, _), (second, _, second_moved, _) = run_ranks(2, dropped, 0.0, 0.5, False)
    assert not torch.equal(first, second) and not moved and not second_moved
    assert (output == 2 * ALL_ONE).all()


def test_without_dropout_nothing_is_drawn():
    for attended, output, moved, _ in run_ranks(2, dropped, 0.0, 0.0, False):
        assert torch.allclose(attended, torch.ones_like(attended)) and (output == 2 * ALL_ONE).all() and not moved
