"""In a 16-bit network the embedding sum and its first reader stay in float32, in the clean and the perturbed pass."""

import pytest
import torch

from megatron_alum.models import build_model
from megatron_alum.ops import symmetric_kl
from tests.models.batches import VOCAB_SIZE, make_batch, small_config
from tests.models.huggingface import randomize_whole
from tests.models.tolerances import HALF_LOGITS_ATOL

HALF = [torch.bfloat16, torch.float16]
TYPES = ["megatron-bert", "bert", "roberta"]


def _model(groups, model_type, dtype):
    config = small_config(model_type, num_attention_heads=3)
    model = build_model(config, vocab_size=VOCAB_SIZE, groups=groups)
    randomize_whole(model, groups)
    return model.to(dtype)


def _forward(model, batch, delta, level="word"):
    x = model.embed(batch.inputs, level=level)
    assert x.dtype == torch.float32
    hidden = model.encode(x + delta, batch.inputs, level=level)
    return hidden, model.heads(hidden, batch.inputs)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("level", ["word", "encoder_input", 1])
@pytest.mark.parametrize("model_type", TYPES)
def test_no_perturbation_means_no_divergence(groups, model_type, level, dtype):
    model, batch = _model(groups, model_type, dtype), make_batch(model_type)
    hidden, clean = _forward(model, batch, 0.0, level)
    _, adversarial = _forward(model, batch, torch.zeros(40, 1, 24), level)
    assert hidden.dtype == dtype and clean.mlm_logits.dtype == dtype
    for a, b in zip(clean, adversarial, strict=True):
        if a is not None:
            assert symmetric_kl(a, b, impl="reference").abs().max().item() == 0.0


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("model_type", TYPES)
def test_logits_are_those_of_float32_within_rounding(groups, model_type, dtype):
    batch = make_batch(model_type)
    _, wide = _forward(_model(groups, model_type, torch.float32), batch, 0.0)
    _, half = _forward(_model(groups, model_type, dtype), batch, 0.0)
    torch.testing.assert_close(half.mlm_logits.float(), wide.mlm_logits, atol=HALF_LOGITS_ATOL[dtype], rtol=0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("level", ["encoder_input", 1])
@pytest.mark.parametrize(
    ("model_type", "reader"), [("megatron-bert", "input_layernorm"), ("bert", "self_attention.linear_qkv")]
)
def test_first_reader_sees_a_perturbation_below_16_bit_resolution(groups, model_type, reader, level, dtype):
    """x is about 1, where bfloat16 steps by 2^-8 and float16 by 2^-11; a shift of 1e-4 of one channel must still
    arrive.
    """
    model, batch = _model(groups, model_type, dtype), make_batch(model_type)
    seen = []
    first = model.encoder.layers[level if isinstance(level, int) else 0].get_submodule(reader)
    first.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    delta = torch.zeros(40, 1, 24)
    delta[..., 0] = 1e-4
    _forward(model, batch, 0.0, level)
    _forward(model, batch, delta, level)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[1] - seen[0], delta, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("level", ["word", 1])
@pytest.mark.parametrize("model_type", TYPES)
def test_first_reader_computes_in_float32(groups, model_type, level, dtype):
    """The gradient of its input equals the float32 network's to 16-bit rounding of what follows, and is itself
    float32.
    """
    model, batch = _model(groups, model_type, dtype), make_batch(model_type)
    delta = torch.zeros(40, 1, 24, requires_grad=True)
    _, outputs = _forward(model, batch, delta, level)
    outputs.mlm_logits.float().logsumexp(-1).sum().backward()
    assert delta.grad is not None and delta.grad.dtype == torch.float32
    assert (delta.grad.to(dtype).float() != delta.grad).any(), "the gradient passed through 16 bits on its way to delta"
