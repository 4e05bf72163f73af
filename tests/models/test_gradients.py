"""Gradients of one step do not depend on the layout: TP = 1 against TP = 2, with and without sequence parallelism.

Every parameter is compared, in both phases, through megatron-core's own DDP and gradient finalisation, dropout 0.
"""

import functools

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.helpers.pairs import pairs
from tests.models.alum_step import gradients
from tests.models.batches import make_batch, small_config
from tests.models.tolerances import BFLOAT16_LOSS_RTOL, DELTA_ATOL, GRADIENT_TOLERANCE, LOSS_RTOL

TYPES = ["megatron-bert", "bert", "roberta"]


@functools.cache
def _one_rank(model_type, **options):
    return run_ranks(1, gradients, small_config(model_type), make_batch(model_type), options)[0]


@pytest.mark.parametrize(*pairs(model_type=TYPES, level=["word", "encoder_input", 1], sequence_parallel=[True, False]))
def test_alum_step_equals_one_rank(model_type, sequence_parallel, level):
    expected, losses, _, delta = _one_rank(model_type, level=level)
    options = {"level": level, "sequence_parallel": sequence_parallel}
    ranks = run_ranks(2, gradients, small_config(model_type), make_batch(model_type), options)
    for whole, rank_losses, inner_main_grad, _ in ranks:
        assert inner_main_grad == 0.0
        assert rank_losses == pytest.approx(losses, rel=LOSS_RTOL)
        assert losses["kl"] > 1e-4
        _assert_equal(whole, expected)
    deltas = [answer[3] for answer in ranks]
    whole_delta = torch.cat(deltas) if sequence_parallel else deltas[0]
    torch.testing.assert_close(whole_delta, delta, atol=DELTA_ATOL, rtol=0)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_standard_step_equals_one_rank(sequence_parallel):
    expected, losses, _, _ = _one_rank("megatron-bert", adversarial=False)
    options = {"sequence_parallel": sequence_parallel, "adversarial": False}
    for whole, rank_losses, _, _ in run_ranks(2, gradients, small_config("megatron-bert"), make_batch("bert"), options):
        assert rank_losses == pytest.approx(losses, rel=LOSS_RTOL)
        _assert_equal(whole, expected)


@pytest.mark.parametrize("model_type", ["megatron-bert", "bert"])
def test_bfloat16_losses_agree_under_sequence_parallelism(model_type):
    _, losses, _, _ = _one_rank(model_type, dtype=torch.bfloat16)
    options = {"sequence_parallel": True, "dtype": torch.bfloat16}
    ranks = run_ranks(2, gradients, small_config(model_type), make_batch(model_type), options)
    for _, rank_losses, inner_main_grad, delta in ranks:
        assert rank_losses == pytest.approx(losses, rel=BFLOAT16_LOSS_RTOL)
        assert inner_main_grad == 0.0 and delta.dtype == torch.float32


def _assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], **GRADIENT_TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert expected[name].abs().max() > 0 or name == "embedding.tokentype_embeddings.weight", name
