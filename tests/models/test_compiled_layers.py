"""Compiled layers: a few graphs that all layers share, whatever the batch holds, broken only by the attention."""

import pytest
import torch

from megatron_alum.config.cli import build_config
from megatron_alum.config.run import RunConfig
from megatron_alum.models import ModelInputs, build_model
from tests.helpers.distributed import run_ranks

# Lengths of the sequences; every number of tokens, of sequences and of masked positions differs from the ones before.
BATCHES = [(20, 30, 7), (21, 33, 9, 11), (41, 9), (30, 50, 6, 9, 3)]
LAYERS = 12
"""more than torch.compile's own limit of versions, if each layer needed one"""


def graphs_after(rank, world_size, dropout, rows):
    """[graphs compiled so far] after each of BATCHES in training, after frozen parameters, after validation; then the
    graph breaks, and the largest difference from the same network without compiler (dropout 0)."""
    from megatron_alum.alum.ascent import frozen
    from megatron_alum.parallel import initialize, seed_everything

    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    seed_everything(1, groups)
    values = {"data_path": ("none",), "dry_run": True, "num_layers": LAYERS, "hidden_size": 16, "seq_length": 64}
    values |= {"num_attention_heads": 2, "hidden_dropout": dropout, "attention_dropout": dropout}
    config = build_config(RunConfig, [values | {"micro_batch_size": 2, "global_batch_size": 2}])
    plain, compiled = (build_model(config.model, vocab_size=100, groups=groups) for _ in range(2))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled.encoder.compile_layers(backend="aot_eager")
    counters, found, differences = torch._dynamo.utils.counters, [], [0.0]

    def run(lengths, *, with_gradient=True):
        inputs = inputs_of(lengths)
        with torch.set_grad_enabled(with_gradient):
            outputs = [through(model, inputs, rows) for model in (compiled, plain)]
        if with_gradient:
            gradients = [torch.autograd.grad(output.square().sum(), x)[0] for output, x in outputs]
            differences.append(float((gradients[0] - gradients[1]).abs().max()))
        differences.append(float((outputs[0][0] - outputs[1][0]).detach().abs().max()))
        found.append(counters["stats"]["unique_graphs"])

    for lengths in BATCHES:
        run(lengths)
    with frozen([*plain.parameters(), *compiled.parameters()]):  # the ascent's passes
        for lengths in BATCHES[:2]:
            run(lengths)
    plain.eval(), compiled.eval()
    for lengths in BATCHES[:2]:
        run(lengths, with_gradient=False)
    return found, dict(counters["graph_break"]), max(differences)


def inputs_of(lengths):
    """Sequences of these lengths, padded to a multiple of 8, every seventh token masked."""
    total = -(-sum(lengths) // 8) * 8
    return ModelInputs.of(
        tokens=torch.arange(total) % 90 + 5,
        token_types=torch.zeros(total, dtype=torch.int64),
        position=torch.arange(total) % 60,
        lengths=lengths,
        masked_positions=torch.arange(0, sum(lengths), 7),
        device=torch.device("cpu"),
    )


def through(model, inputs, rows):
    """(output of the layers, x) from an embedding that is the same for all models."""
    x = model.embed(inputs).detach().requires_grad_()
    return (model.encode_rows(x, inputs).masked if rows else model.encode(x, inputs)), x


@pytest.mark.parametrize("rows", [False, True], ids=["all tokens", "chosen rows"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_only_the_attention_breaks_a_layer(dropout, rows):
    ((found, breaks, difference),) = run_ranks(1, graphs_after, dropout, rows)
    assert len(breaks) == 1 and "PackedAttention.forward" in next(iter(breaks)), breaks
    of_training, of_frozen, of_validation = found[:4], found[4:6], found[6:]
    # One before the attention, and one in each function around it; the last layer's last one has rows to choose.
    assert of_training == [6 if rows else 5] * 4, "another batch has compiled something again"
    assert of_frozen == [of_frozen[0]] * 2 and of_frozen[0] <= 2 * of_training[0], found
    assert of_validation == [of_validation[0]] * 2 and of_validation[0] <= 3 * of_training[0], found
    assert dropout or difference < 1e-5
