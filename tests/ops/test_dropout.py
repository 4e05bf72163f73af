"""Dropout on the CPU: its share and scale, its mask, backward, and the reference against the kernel bit for bit."""

import pytest
import torch
from torch.nn import functional as F

from megatron_alum.ops import attention_with_dropout, draw_dropout, dropout
from megatron_alum.reference.dropout import splitmix64
from tests.helpers.other_device import OTHER_DEVICE, other_device
from tests.ops.tolerances import ATTENTION, SCALE_RTOL

pytestmark = pytest.mark.skipif(
    "config.getoption('--device') != 'cpu'", reason="other devices take torch's own dropout kernel"
)


@pytest.mark.parametrize("probability", [0.1, 0.5, 1e-4, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_share_scale_and_gradient(probability, dtype):
    torch.manual_seed(3)
    x = torch.ones(1000, 999, dtype=dtype, requires_grad=True)  # not a multiple of the four elements a word serves
    y = dropout(x, probability)
    dropped = (y == 0).double().mean().item()
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert abs(dropped - probability) < 4 * deviation + 2**-17
    kept = y[y != 0].double()
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=2**-7 if dtype == torch.bfloat16 else 1e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_words_are_those_ofsplitmix64():
    """First words of seed 1234567, as the generator's author publishes them for his C code."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    words = splitmix64(torch.tensor(1234567), 4).tolist()
    assert [word % 2**64 for word in words] == expected


@pytest.mark.parametrize("count", [0, 1, 3, 511, 512, 513, 5000, 70_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernel_equals_reference(kernel_only, count, dtype):
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    results = []
    for impl in ("cpu", "reference"):
        torch.manual_seed(7)
        results.append(dropout(x, 0.3, impl=impl))
    assert torch.equal(*results)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_strides_do_not_decide_the_mask(kernel_only, threads):
    """Logical order counts: a transposed tensor gets the mask of its contiguous copy."""
    x = torch.randn(300, 700, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        results = []
        for y in (x.t(), x.t().contiguous()):
            torch.manual_seed(11)
            results.append(dropout(y, 0.5))
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(11)
    assert torch.equal(*results) and torch.equal(results[0], dropout(x.t(), 0.5, impl="reference"))


@pytest.mark.parametrize("lag", range(1, 9))
def test_neighbours_are_independent(lag):
    torch.manual_seed(4)
    zero = (dropout(torch.ones(400_000), 0.5) == 0).double() * 2 - 1
    assert abs((zero[lag:] * zero[:-lag]).mean().item()) < 4 / 400_000**0.5


def test_what_was_drawn_before_is_what_would_have_been_drawn():
    x, state = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)), torch.get_rng_state()
    expected, after = dropout(x, 0.4), torch.get_rng_state()
    torch.set_rng_state(state)
    drawn = draw_dropout(x.shape, 0.4, x.device)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(dropout(x, 0.4, drawn=drawn), expected)
    assert torch.equal(torch.get_rng_state(), after), "it has drawn again"
    assert dropout(x, 0.4, drawn=drawn, training=False) is x and dropout(x, 0.0, drawn=drawn) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mask_drops_where_it_says(dtype):
    """Values by hand; the gradient is the mask again, and so is the gradient's."""
    mask = torch.tensor([True, False, True, True])
    x = torch.tensor([1.0, 2.0, -3.0, 0.0], dtype=dtype, requires_grad=True)
    y = dropout(x, 0.75, drawn=mask)
    assert y.tolist() == [4.0, 0.0, -12.0, 0.0] and y.dtype == dtype
    (gradient,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    assert gradient.tolist() == [32.0, 0.0, -96.0, 0.0]
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.tolist() == [32.0, 0.0, 32.0, 32.0]


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_scales_without_bias_in_both_directions(dtype, probability):
    """Each value is rounded once; a scale rounded to 16 bits would shift all of them by up to 0.2 %."""
    generator = torch.Generator().manual_seed(6)
    x, direction = (torch.rand(2**20, generator=generator, dtype=torch.float64).add(1).to(dtype) for _ in range(2))
    y = dropout(x.requires_grad_(), probability, drawn=torch.ones(x.shape, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(y, x, direction)
    for found, of in ((y, x), (gradient, direction)):
        ratio = (found.double() / of.double()).mean().item() * (1 - probability)
        assert abs(ratio - 1) < SCALE_RTOL, ratio


def test_a_device_draws_masks_of_its_own():
    with other_device():
        mask = draw_dropout(torch.Size((1000, 999)), 0.1, OTHER_DEVICE)
        assert mask.device == OTHER_DEVICE and mask.dtype == torch.bool and mask.shape == (1000, 999)
        x = torch.ones(1000, 999, device=OTHER_DEVICE)
        y = dropout(x, 0.1, drawn=mask).cpu()
        kept = mask.cpu().double()
    deviation = (0.1 * 0.9 / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - 0.9) < 4 * deviation
    assert torch.equal(y.double() * 0.9 > 0.5, kept.bool())


def test_same_generator_state_gives_the_same_mask():
    torch.manual_seed(5)
    first, second = (dropout(torch.ones(100), 0.5) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(dropout(torch.ones(100), 0.5), first)
    assert not torch.equal(first, second)


def test_nothing_is_hidden():
    """NaN stays visible where it is dropped: a loss scaler looks for it."""
    torch.manual_seed(6)
    assert dropout(torch.full((1000,), torch.inf), 0.5).isnan().any()


def test_edges(impl):
    x = torch.ones(3)
    assert dropout(x, 0.5, training=False, impl=impl) is x
    assert dropout(x, 0.0, impl=impl) is x
    assert torch.equal(dropout(x, 1.0, impl=impl), torch.zeros(3))
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"`probability` must be in \[0, 1\]"):
            dropout(x, wrong, impl=impl)


def test_derivatives_of_any_order(impl):
    """Dropout is linear: the gradient of its gradient is dropout again."""
    x = torch.randn(50, requires_grad=True)
    torch.manual_seed(9)
    y = dropout(x, 0.5, impl=impl)
    factor = (y / x).detach()
    upstream = torch.randn(50, requires_grad=True)
    (grad,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    assert torch.allclose(grad, upstream * factor)
    (second,) = torch.autograd.grad(grad.sum(), upstream)
    assert torch.equal(second, factor.round())


def test_operator(kernel_only):
    x = torch.randn(50)
    torch.library.opcheck(torch.ops.megatron_alum.dropout, (x, torch.tensor(3), 6554))
    with pytest.raises(ValueError, match="`seed` must be one int64"):
        torch.ops.megatron_alum.dropout(x, torch.tensor([3]), 6554)
    with pytest.raises(ValueError, match="`threshold` must be in"):
        torch.ops.megatron_alum.dropout(x, torch.tensor(3), 65536)


def test_compiles_without_graph_breaks(kernel_only):
    def function(x):
        return dropout(x * 2, 0.5).sum()

    x = torch.ones(1000, requires_grad=True)
    torch.manual_seed(8)
    torch.compile(function, fullgraph=True, backend="aot_eager")(x).backward()
    expected = torch.ones(1000, requires_grad=True)
    torch.manual_seed(8)
    function(expected).backward()
    assert torch.equal(x.grad, expected.grad)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention(kind):
    """Against torch's own without dropout; with it, the mean of many masks is that value."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=generator)
    masks = {
        "none": None,
        "bool": (torch.arange(6) < 4).view(1, 1, 1, 6),
        "float": torch.randn(2, 1, 6, 6, generator=generator),
    }
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[kind], scale=0.3)
    assert torch.allclose(attention_with_dropout(q, k, v, masks[kind], 0.0, scale=0.3), expected, **ATTENTION)
    torch.manual_seed(2)
    draws = torch.stack([attention_with_dropout(q, k, v, masks[kind], 0.2, scale=0.3) for _ in range(2000)])
    errors = (draws.mean(0) - expected).abs() / (draws.std(0) / 2000**0.5)
    assert errors.max() < 5.5  # standard errors, of 384 numbers
