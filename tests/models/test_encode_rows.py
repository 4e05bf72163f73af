"""The last MLP on the rows that the heads read: values and gradients of the whole encoder, on each layout."""

import pytest
import torch

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.models import build_model
from tests.helpers.distributed import run_ranks
from tests.models.batches import VOCAB_SIZE, make_batch, small_config
from tests.models.tolerances import GRADIENT_TOLERANCE, LOGITS_ATOL


def heads_both_ways(rank, world_size, model_type, recompute, num_masked, level):
    """[(outputs, gradients)] of all positions and of the rows alone."""
    from megatron_alum.parallel import initialize

    groups = initialize(tensor_parallel_size=world_size)
    config = small_config(model_type)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups, dtype=torch.float32, recompute=recompute).train()
    batch = make_batch(model_type)
    batch.masked_positions = batch.masked_positions[:num_masked]
    results = []
    for of_rows in (False, True):
        model.zero_grad()
        x = model.embed(batch.inputs, level=level)
        hidden = (model.encode_rows if of_rows else model.encode)(x, batch.inputs, level=level)
        parts = [model.heads(hidden, batch.inputs, masked=part) for part in (slice(None, 2), slice(2, None))]
        outputs = [*(part.mlm_logits for part in parts), *(part.nsp_logits for part in parts)]
        outputs = [output for output in outputs if output is not None]
        sum(output.square().sum() for output in outputs).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append(([output.detach() for output in outputs], gradients))
    return results


@pytest.mark.parametrize(
    ("model_type", "world_size", "recompute", "num_masked", "level"),
    [
        ("megatron-bert", 1, "none", 9, "word"),
        ("bert", 1, "none", 9, "encoder_input"),
        ("roberta", 1, "none", 9, "word"),
        ("megatron-bert", 1, "none", 9, 1),
        ("megatron-bert", 2, "none", 9, "word"),
        ("bert", 2, "full", 9, 1),
        ("megatron-bert", 1, "full", 4, "word"),
        ("bert", 1, "selective", 1, "word"),
        ("bert", 1, "none", 0, "word"),
    ],
)
def test_equals_the_whole_encoder(model_type, world_size, recompute, num_masked, level):
    for whole, rows in run_ranks(world_size, heads_both_ways, model_type, recompute, num_masked, level):
        for expected, found in zip(whole[0], rows[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=LOGITS_ATOL)
        assert whole[1].keys() == rows[1].keys()
        for name, expected in whole[1].items():
            torch.testing.assert_close(rows[1][name], expected, **GRADIENT_TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


def forward_with_dropout(rank, world_size, recompute):
    """Gradients with dropout, from the same seed."""
    import dataclasses

    from megatron_alum.parallel import initialize, seed_everything

    groups = initialize(tensor_parallel_size=world_size)
    config = dataclasses.replace(small_config("bert"), hidden_dropout=0.2, attention_dropout=0.2)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups, dtype=torch.float32, recompute=recompute).train()
    seed_everything(11, groups)
    batch = make_batch("bert")
    logits, _ = model.heads(model.encode_rows(model.embed(batch.inputs), batch.inputs), batch.inputs)
    logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_rows_see_the_same_dropout(recompute):
    expected, found = (run_ranks(1, forward_with_dropout, how)[0] for how in ("none", recompute))
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), True),
        (("--tensor-model-parallel-size", "2"), True),
        (("--recompute-granularity", "full"), True),
        (("--tensor-model-parallel-size", "2", "--sequence-parallel"), False),
        (("--pipeline-model-parallel-size", "2", "--alum-alpha", "0"), False),
        (("--torch-compile",), False),
    ],
)
def test_layouts_that_encode_rows(flags, expected):
    base = ("--data-path", "corpus", "--save", "run", "--model-size", "tiny", "--train-iters", "10")
    assert parse_config(RunConfig, [*base, *flags]).encodes_rows is expected
