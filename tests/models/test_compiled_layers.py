"""Compiled layers: one graph that all layers share, whatever the batch holds; on the CPU the attention divides it."""

from unittest import mock

import pytest
import torch

from megatron_alum.config.cli import build_config
from megatron_alum.config.run import RunConfig
from megatron_alum.models import ModelInputs, build_model
from megatron_alum.ops.cpu_dropout import draw_mask
from tests.helpers.distributed import run_ranks

# Lengths of the sequences; every number of tokens, of sequences and of masked positions differs from the ones before.
BATCHES = [(20, 30, 7), (21, 33, 9, 11), (41, 9), (30, 50, 6, 9, 3)]
ALL, CHOSEN = pytest.param(0.0, False, id="all tokens"), pytest.param(0.1, True, id="dropout, chosen rows")
SHARED = [
    pytest.param(0.0, False, True, id="sequence parallelism"),
    pytest.param(0.1, False, True, id="sequence parallelism, dropout", marks=pytest.mark.slow),
    pytest.param(0.0, True, False, id="tensor parallelism, chosen rows", marks=pytest.mark.slow),
    pytest.param(0.1, False, False, id="tensor parallelism, dropout"),
    pytest.param(0.1, True, False, id="tensor parallelism, dropout, chosen rows", marks=pytest.mark.slow),
]
LAYERS = 9
"""more than torch.compile's own limit of 8 versions, if each layer needed one"""


def slow(case):
    """The case for the slow suite: every test compiles for seconds."""
    return pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)


def dense_attention(query, key, value, sequences, probability):
    """A kernel that torch.compile can look into, as it can into the GPU's: each token sees those of its sequence."""
    boundaries = sequences.cu_seqlens_q.to(torch.int64)
    sequence = torch.bucketize(torch.arange(query.shape[0]), boundaries, right=True)
    scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(sequence[:, None] != sequence, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", torch.dropout(weights, probability, train=True), value)


def graphs_of_kernel_after(rank, world_size, *arguments):
    """As `graphs_after`, with an attention that is a kernel, and masks of dropout that are tensors, as on a GPU."""
    from megatron_alum.models import attention, encoder

    with (
        mock.patch.dict(attention._BACKENDS, jagged=dense_attention),
        mock.patch.object(encoder, "draw_dropout", draw_mask),
    ):
        return graphs_after(rank, world_size, *arguments, attention="jagged")


def graphs_after(rank, world_size, dropout, rows, sequence_parallel=False, attention=None):
    """[graphs compiled so far] after each of BATCHES in training, after frozen parameters, after validation; then the
    graph breaks, and the largest difference from the same network without compiler, gradients of parameters included.
    The ranks share each layer."""
    from megatron_alum.alum.ascent import frozen
    from megatron_alum.parallel import initialize, seed_everything

    groups = initialize(tensor_parallel_size=world_size, sequence_parallel=sequence_parallel, timeout_seconds=60)
    seed_everything(1, groups)
    values = {
        "data_path": ("none",),
        "dry_run": True,
        "num_layers": LAYERS if world_size == 1 else 2,
        "hidden_size": 16,
        "seq_length": 64,
    }
    values |= {"num_attention_heads": 2, "hidden_dropout": dropout, "attention_dropout": dropout}
    config = build_config(RunConfig, [values | {"micro_batch_size": 2, "global_batch_size": 2}])
    plain, compiled = (build_model(config.model, vocab_size=100, groups=groups, attention=attention) for _ in range(2))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled.encoder.compile_layers(backend="aot_eager")
    counters, found, differences = torch._dynamo.utils.counters, [], [0.0]

    def run(lengths, *, with_gradient=True):
        inputs = inputs_of(lengths)
        with torch.set_grad_enabled(with_gradient):
            outputs = []
            for model in (compiled, plain):
                seed_everything(1, groups)  # the same draws
                outputs.append(through(model, inputs, rows))
        if with_gradient:
            both = [torch.autograd.grad(output.square().sum(), leaves) for output, leaves in outputs]
            differences.extend(float((ours - plain).abs().max()) for ours, plain in zip(*both, strict=True))
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
    """(output of the layers, [x, their parameters if not frozen]) from an embedding that is the same for all models."""
    x = model.embed(inputs).detach().requires_grad_()
    trained = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    return (model.encode_rows(x, inputs).masked if rows else model.encode(x, inputs)), [x, *trained]


@pytest.mark.parametrize(("dropout", "rows"), [slow(ALL), CHOSEN])
def test_a_layer_is_one_graph(dropout, rows):
    """With gradients of everything, of x alone, and without; the last layer has another one for chosen rows."""
    ((found, breaks, difference),) = run_ranks(1, graphs_of_kernel_after, dropout, rows)
    each = 2 if rows else 1
    assert breaks == {} and found == [each] * 4 + [2 * each] * 2 + [3 * each] * 2, "another batch has compiled it again"
    assert difference < 1e-5


@pytest.mark.parametrize(("dropout", "rows", "sequence_parallel"), SHARED)
def test_a_layer_shared_by_two_ranks_is_one_graph(dropout, rows, sequence_parallel):
    """Its sums and gathers over the group are inside."""
    for found, breaks, difference in run_ranks(2, graphs_of_kernel_after, dropout, rows, sequence_parallel):
        each = 2 if rows else 1
        assert breaks == {} and found == [each] * 4 + [2 * each] * 2 + [3 * each] * 2, (breaks, found)
        assert difference < 1e-5


@pytest.mark.parametrize(("dropout", "rows"), [ALL, slow(CHOSEN)])
def test_the_attention_alone_divides_a_layer_on_the_cpu(dropout, rows):
    ((found, breaks, difference),) = run_ranks(1, graphs_after, dropout, rows)
    assert len(breaks) == 1 and "PackedAttention.forward" in next(iter(breaks)), breaks
    of_training, of_frozen, of_validation = found[:4], found[4:6], found[6:]
    # One before the attention, and one in each function around it; the last layer's last one has rows to choose.
    assert of_training == [5 if rows else 4] * 4, "another batch has compiled something again"
    assert of_frozen == [of_frozen[0]] * 2 and of_frozen[0] <= 2 * of_training[0], found
    assert of_validation == [of_validation[0]] * 2 and of_validation[0] <= 3 * of_training[0], found
    assert difference < 1e-5
