"""SDPA core attention against megatron-core's own DotProductAttention, and its dropout."""

import pytest
import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType

from megatron_alum.config.model import ModelConfig
from megatron_alum.models.attention import SdpaCoreAttention
from megatron_alum.models.build import transformer_config
from tests.models.tolerances import ATTENTION_ATOL

S, B, HEADS, D = 12, 3, 2, 8


def _attention(groups, probability=0.0):
    config = ModelConfig(
        num_layers=1, hidden_size=HEADS * D, num_attention_heads=HEADS, seq_length=S, attention_dropout=probability
    )
    return SdpaCoreAttention(transformer_config(config, groups=groups, dtype=torch.float32))


def _qkv(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(S, B, HEADS, D, generator=generator, requires_grad=True) for _ in range(3)]


def _ignored():
    mask = torch.zeros(B, 1, 1, S, dtype=torch.bool)
    mask[1, ..., 7:] = True
    mask[2, ..., 3:] = True
    return mask


@pytest.mark.parametrize("padded", [False, True])
def test_value_and_gradients_equal_megatron_core(groups, padded):
    ours = _attention(groups)
    theirs = DotProductAttention(ours.config, 1, AttnMaskType.padding, "self")
    mask = _ignored() if padded else None
    results = []
    for attention, attention_mask in ((ours, mask), (theirs, mask.expand(B, 1, S, S) if padded else None)):
        q, k, v = _qkv()
        out = attention(q, k, v, attention_mask)
        out.square().sum().backward()
        results.append((out, q.grad, k.grad, v.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=ATTENTION_ATOL, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_dropout_is_unbiased_and_replayable(groups, padded):
    attention, mask = _attention(groups, probability=0.3), _ignored() if padded else None
    q, k, v = _qkv()
    expected = attention.eval()(q, k, v, mask)
    attention.train()
    state = torch.get_rng_state()
    draws = torch.stack([attention(q, k, v, mask) for _ in range(400)])
    # the tracker's stream moved, the default one did not: dropout ran inside the tensor-parallel fork
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - expected) / (draws.std(0) / 400**0.5 + 1e-6)
    assert error.abs().max() < 5.5  # 576 values: the largest normal deviate of so many is about 3.2
    assert error.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.2)


def test_ignored_keys_get_no_weight_under_dropout(groups):
    attention = _attention(groups, probability=0.3)
    q, k, v = _qkv()
    attention(q, k, v, _ignored()).sum().backward()
    assert v.grad[7:, 1].abs().max() == 0 and v.grad[3:, 2].abs().max() == 0
    assert v.grad[:7, 1].abs().max() > 0
