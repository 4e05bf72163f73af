"""Attention within packed sequences, on each backend, against one sequence after the other in float64, and its dropout
against the weights that it drops.
"""

import importlib.machinery
import sys
import types

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType

from megatron_alum.config.model import ModelConfig
from megatron_alum.models import attention as module
from megatron_alum.models.attention import PackedAttention, attention_backend
from megatron_alum.models.build import transformer_config
from megatron_alum.models.sequences import PackedSequences
from tests.models.tolerances import ATTENTION_ATOL

HEADS, D = 2, 8
LENGTHS = (12, 5, 1, 12, 3)
T = 40  # 33 real tokens and a tail of 7
BACKENDS = ["native", "jagged", "flash"]


def flash_stand_in(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout_p=0.0, causal=False):
    """flash-attn's function written out: same arguments, same layout."""
    assert starts_q is starts_k and longest_q == longest_k and not causal
    assert starts_q.dtype == torch.int32 and starts_q[0] == 0 and starts_q[-1] == len(q)
    assert longest_q == starts_q.diff().max() and starts_q.diff().min() > 0
    context = []
    for begin, end in zip(starts_q[:-1].tolist(), starts_q[1:].tolist(), strict=True):
        one, two, three = (tensor[begin:end].transpose(0, 1) for tensor in (q, k, v))
        weights = torch.softmax(one @ two.transpose(1, 2) / D**0.5, -1)
        context.append((torch.dropout(weights, dropout_p, True) @ three).transpose(0, 1))
    return torch.cat(context)


@pytest.fixture(autouse=True)
def flash_package(monkeypatch):
    """A package of flash-attn's name, since its kernels need a GPU."""
    package = types.ModuleType("flash_attn")
    package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = flash_stand_in
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    module._flash_attention.cache_clear()
    yield package
    module._flash_attention.cache_clear()


def core_attention(groups, backend, probability=0.0, **options):
    config = ModelConfig(
        num_layers=1, hidden_size=HEADS * D, num_attention_heads=HEADS, seq_length=16, attention_dropout=probability
    )
    return PackedAttention(transformer_config(config, groups=groups, dtype=torch.float32), backend=backend, **options)


def qkv(num_tokens=T, dtype=torch.float32):
    """Slices of one product, as megatron-core's SelfAttention passes them, and that product."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(num_tokens, HEADS, 3 * D, generator=generator).to(dtype).requires_grad_()
    return mixed, mixed.split(D, dim=-1)


def packed(lengths=LENGTHS, num_tokens=T):
    return PackedSequences(lengths, num_tokens, torch.device("cpu"))


def plain(q, k, v, lengths=LENGTHS):
    """(context [real tokens, heads x D], weights of each sequence) in float64."""
    contexts, weights, begin = [], [], 0
    for length in lengths:
        one, two, three = (tensor[begin : begin + length].double().transpose(0, 1) for tensor in (q, k, v))
        weights.append(torch.softmax(one @ two.transpose(1, 2) / D**0.5, -1))
        contexts.append((weights[-1] @ three).transpose(0, 1).flatten(1))
        begin += length
    return torch.cat(contexts), weights


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("lengths", "num_tokens"), [(LENGTHS, T), ((7,), 7), ((3, 3, 3), 16), ((1,), 40), ((30, 24, 25), 80)]
)
def test_value_and_gradients_equal_those_of_each_sequence(groups, backend, lengths, num_tokens):
    real = sum(lengths)
    mixed, (q, k, v) = qkv(num_tokens)
    out = core_attention(groups, backend)(q, k, v, None, packed_seq_params=packed(lengths, num_tokens))
    assert out.shape == (num_tokens, HEADS * D)
    out[:real].sin().sum().backward()
    exact, (q64, k64, v64) = qkv(num_tokens, torch.float64)
    expected, _ = plain(q64, k64, v64, lengths)
    expected.sin().sum().backward()
    torch.testing.assert_close(out[:real].double(), expected, atol=ATTENTION_ATOL, rtol=0)
    torch.testing.assert_close(mixed.grad[:real].double(), exact.grad[:real], atol=10 * ATTENTION_ATOL, rtol=0)
    assert out.isfinite().all() and (mixed.grad[real:] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_unbiased_and_of_the_right_size(groups, backend):
    """Mean and variance of each output over draws: with weights w and values v it varies by p / (1 - p) sum (w v)^2."""
    probability, draws = 0.3, 2000
    attention, sequences = core_attention(groups, backend, probability), packed()
    _, (q, k, v) = (part for part in qkv())
    with torch.no_grad():
        outputs = torch.stack([attention(q, k, v, None, packed_seq_params=sequences)[:33] for _ in range(draws)])
        outputs = outputs.double()
        expected, weights = plain(q, k, v)
        values = v[:33].double().split(LENGTHS)
        variance = torch.cat(
            [
                torch.einsum("hqk,khd->qhd", w.square(), x.square()).flatten(1)
                for w, x in zip(weights, values, strict=True)
            ]
        )
    variance = variance * probability / (1 - probability)
    deviation = (outputs.mean(0) - expected) / (variance / draws).sqrt()
    assert deviation.abs().max() < 5.5 and deviation.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.2)
    ratio = outputs.var(0) / variance
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.03)
    assert ratio.min() > 0.7 and ratio.max() < 1.4


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_drops_what_forward_dropped(groups, backend):
    """The output is linear in v for the masks that were drawn, so its value is v times its gradient."""
    attention = core_attention(groups, backend, 0.5)
    mixed, (q, k, v) = qkv()
    out = attention(q, k, v, None, packed_seq_params=packed())
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    cotangent[33:] = 0.0
    out.backward(cotangent)
    found = (mixed.grad[..., 2 * D :] * mixed[..., 2 * D :]).sum().item()
    assert found == pytest.approx((out * cotangent).sum().item(), rel=1e-4)
    assert core_attention(groups, backend, 0.5).eval()(q, k, v, None, packed_seq_params=packed()).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_under_dropout_are_those_of_the_masked_function(groups, backend):
    """Finite differences in q, k and v with the generator put back before each call."""
    attention = core_attention(groups, backend, 0.4)
    mixed, _ = qkv(dtype=torch.float64)

    def function(values):
        torch.manual_seed(2)
        q, k, v = values.split(D, dim=-1)
        return attention(q, k, v, None, packed_seq_params=packed())[:33].sin().sum()

    (gradient,) = torch.autograd.grad(function(mixed), mixed)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(mixed.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            difference = (function(mixed + 1e-6 * direction) - function(mixed - 1e-6 * direction)) / 2e-6
        assert difference.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("attention_mask", torch.zeros(1, 1, 1, T, dtype=torch.bool)),
        ("attention_bias", torch.zeros(1, HEADS, T, T)),
        ("attn_mask_type", AttnMaskType.causal),
        ("packed_seq_params", None),
        ("packed_seq_params", PackedSeqParams(qkv_format="thd", cu_seqlens_q=torch.tensor([0, T]))),
    ],
)
def test_what_it_does_not_honour_is_refused(groups, argument, value):
    _, (q, k, v) = qkv()
    arguments = {"attention_mask": None, "packed_seq_params": packed(), argument: value}
    with pytest.raises(ValueError, match=rf"`{argument}` must be .*, but is .* instead"):
        core_attention(groups, "native")(q, k, v, **arguments)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_sequences_of_another_batch_are_refused(groups, which):
    _, parts = qkv()
    parts = [part[:-8] if number == which else part for number, part in enumerate(parts)]
    with pytest.raises(ValueError, match=r"`query, key, value` must be of 40 tokens, but are"):
        core_attention(groups, "native")(*parts, None, packed_seq_params=packed())


@pytest.mark.parametrize(
    ("argument", "value"),
    [("attn_mask_type", AttnMaskType.causal), ("attention_type", "cross"), ("softmax_scale", 0.5)],
)
def test_layers_it_cannot_serve_are_refused(groups, argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}` must be .*, but is .* instead"):
        core_attention(groups, "native", **{argument: value})


def test_the_choice_of_a_backend(flash_package):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert attention_backend(cpu).name == "native"
    assert attention_backend(gpu).name == "flash" and attention_backend(gpu, torch.float16).name == "flash"
    assert attention_backend(gpu, torch.float32) == ("jagged", "flash-attn has no kernel for torch.float32")
    del flash_package.flash_attn_varlen_func
    module._flash_attention.cache_clear()
    name, reason = attention_backend(gpu)
    assert name == "jagged" and reason.startswith("flash-attn cannot be imported (module 'flash_attn' has no")
    sys.modules["flash_attn"] = None
    module._flash_attention.cache_clear()
    assert attention_backend(gpu) == ("jagged", "flash-attn is not installed")
