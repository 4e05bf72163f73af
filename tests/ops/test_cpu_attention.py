"""Attention within sequences on the CPU: the kernel against the reference in float64, its masks, what must not matter,
refusals."""

import pytest
import torch

from megatron_alum.ops import sequence_attention
from megatron_alum.reference.dropout import dropout, splitmix64
from tests.ops.tolerances import ATTENTION, SEQUENCE_ATTENTION

pytestmark = pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="the kernel is for the CPU")

HEADS, D = 3, 16
LENGTHS = [(5,), (1, 1), (12, 3, 12, 1, 30), (130, 2, 65), tuple(range(20, 0, -1))]


def qkv(lengths, tail=0, dtype=torch.float32):
    """Slices of one product, as a layer passes them, and that product."""
    generator = torch.Generator().manual_seed(sum(lengths))
    mixed = torch.randn(sum(lengths) + tail, HEADS, 3 * D, generator=generator).to(dtype).requires_grad_()
    return mixed, mixed.split(D, dim=-1)


def value_and_gradient(impl, lengths, probability, dtype=torch.float32, work=None):
    """Context and a gradient through it in float64, with the masks of one seed, from values of `dtype`."""
    mixed, _ = qkv(lengths, 3, dtype)
    leaf = mixed.detach().to(work or dtype).requires_grad_()
    torch.manual_seed(5)
    out = sequence_attention(*leaf.split(D, dim=-1), lengths, probability, impl=impl)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(leaf.dtype)
    out.backward(cotangent)
    return out.detach().double(), leaf.grad.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_kernel_equals_the_reference(kernel_only, lengths, probability, dtype):
    found = value_and_gradient("cpu", lengths, probability, dtype=dtype)
    expected = value_and_gradient("reference", lengths, probability, dtype=dtype, work=torch.float64)
    for one, other in zip(found, expected, strict=True):
        limit = SEQUENCE_ATTENTION[dtype] * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=limit)
    assert (found[0][sum(lengths) :] == 0).all() and (found[1][sum(lengths) :] == 0).all()


def test_each_sequence_and_head_has_the_mask_of_its_number(kernel_only):
    """With the unit matrix as values the output is the weights; without differences between the keys they are 1 / L."""
    lengths, probability = (16, 16), 0.5
    zero = torch.zeros(32, HEADS, D)
    value = torch.eye(16).repeat(2, 1)[:, None].expand(32, HEADS, D)
    torch.manual_seed(9)
    found = sequence_attention(zero, zero, value, lengths, probability, impl="cpu")
    torch.manual_seed(9)
    seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)
    words = splitmix64(seed, 2 * HEADS)
    for sequence in range(2):
        for head in range(HEADS):
            mask = dropout(torch.full((16, 16), 1 / 16), words[sequence * HEADS + head], 2**15)
            torch.testing.assert_close(found[16 * sequence : 16 * sequence + 16, head], mask, rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(kernel_only, threads):
    expected = value_and_gradient("cpu", LENGTHS[2], 0.3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = value_and_gradient("cpu", LENGTHS[2], 0.3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_strides_do_not_matter(kernel_only, probability):
    lengths = LENGTHS[2]
    _, parts = qkv(lengths)
    results = []
    layouts = (lambda x: x.contiguous(), lambda x: x.transpose(0, 2).contiguous().transpose(0, 2))
    for laid_out in (lambda x: x, *layouts):
        leaves = [laid_out(part.detach()).requires_grad_() for part in parts]
        torch.manual_seed(2)
        out = sequence_attention(*leaves, lengths, probability, impl="cpu")
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            torch.testing.assert_close(one, other, **ATTENTION)


def test_what_is_not_finite_stays_in_its_sequence_and_head(kernel_only):
    lengths = (4, 7, 4)
    mixed, parts = qkv(lengths)
    expected = sequence_attention(*parts, lengths)
    with torch.no_grad():
        mixed[5, 1, 0] = float("nan")
    found = sequence_attention(*mixed.split(D, dim=-1), lengths)
    found_own = found[4:11, 1].isnan()
    assert found_own[1].all() and torch.equal(found[:4], expected[:4]) and torch.equal(found[11:], expected[11:])
    assert torch.equal(found[4:11, [0, 2]], expected[4:11, [0, 2]])


def test_no_sequences_give_zeros(kernel_only):
    _, parts = qkv((), tail=6)
    assert torch.equal(sequence_attention(*parts, (), impl="cpu"), torch.zeros(6, HEADS, D))


@pytest.mark.parametrize("lengths", [(4, 0), (-1, 5), (9, 2)])
def test_lengths_that_do_not_fit_are_refused(kernel_only, lengths):
    _, parts = qkv((10,))
    with pytest.raises(ValueError, match=r"`lengths` must be positive and add up to at most 10 tokens, but is \["):
        sequence_attention(*parts, lengths, impl="cpu")


@pytest.mark.parametrize("which", ["key", "value"])
def test_shapes_that_do_not_fit_are_refused(kernel_only, which):
    _, (query, key, value) = qkv((10,))
    parts = {"key": key, "value": value, which: key[:-1]}
    with pytest.raises(ValueError, match=rf"`{which}` must be \[10, 3, 16\] on cpu, but is \[9, 3, 16\]"):
        sequence_attention(query, parts["key"], parts["value"], (9,), impl="cpu")
