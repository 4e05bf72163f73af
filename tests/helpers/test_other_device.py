"""The stand-in for a GPU computes real values and refuses what a GPU would refuse."""

import pytest
import torch

from tests.helpers.other_device import OTHER_DEVICE, other_device


def test_values_are_those_of_the_cpu_and_devices_do_not_mix():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    with other_device():
        there, moved = x.to(OTHER_DEVICE), weight.to(OTHER_DEVICE)
        product = torch.nn.functional.linear(there, moved) + torch.ones(5, device=OTHER_DEVICE)
        assert product.device == OTHER_DEVICE
        assert torch.equal(product.cpu(), torch.nn.functional.linear(x, weight) + 1)
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            torch.nn.functional.linear(x, moved)


@pytest.mark.parametrize(
    ("read", "named"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x.tolist(), "_to_copy to the host"),
        (lambda x: x.cpu(), "_to_copy to the host"),
        (lambda x: torch.zeros(3, 4).copy_(x), "copy_ to the host"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index.Tensor"),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device="cuda"), dim=1), "repeat_interleave"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: torch.zeros(3, 4).to("cuda"), "_to_copy to the device, blocking"),
        (lambda x: torch.tensor([1.0], device=x.device), "_to_copy to the device, blocking"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_every_way_to_wait_is_noted(read, named):
    with other_device() as gpu:
        x = torch.randn(3, 4).to(OTHER_DEVICE, non_blocking=True)
        assert not gpu.waits
        read(x)
        assert any(named in wait for wait in gpu.waits), gpu.waits


def _module(name, body, **known):
    """The function `read` of a module of this name."""
    known["__name__"] = name
    exec(body, known)
    return known["read"]


@pytest.mark.parametrize(("inner", "outer"), [("transformers", "megatron_alum"), ("megatron_alum", "transformers")])
def test_a_wait_is_of_the_innermost_of_our_and_of_known_packages(inner, outer):
    """Whoever calls whom; a module that merely has such a name within its own is neither."""
    reads = _module(f"{inner}.models", "def read(x):\n    return x.sum().item()\n")
    between = _module("my_megatron_alum.part", "def read(x):\n    return reads(x)\n", reads=reads)
    calls = _module(f"{outer}.trainer", "def read(x):\n    return reads(x)\n", reads=between)
    with other_device() as gpu:
        calls(torch.ones(3).to(OTHER_DEVICE, non_blocking=True))
    assert list(gpu.waits) == [f"_local_scalar_dense at {inner}.models:2"]


def test_what_does_not_wait_is_not_noted():
    """Fills, masks, where, lookups and a backward pass with its Python functions."""
    with other_device() as gpu:
        x = torch.randn(3, 4).pin_memory().to("cuda", non_blocking=True).requires_grad_()
        y = torch.where(x > 0, x, 0.0).masked_fill(x < 0, 1.0) + torch.full((4,), 2.0, device=x.device)
        y[y > 1] = 3.0
        y[torch.zeros(1, dtype=torch.int64, device=x.device)].sum().backward()
        assert x.grad.is_cuda and x.type() == "torch.cuda.FloatTensor" and not gpu.waits


def test_its_random_numbers_are_its_own():
    """A draw on the device leaves the host's generator alone, and can be repeated from a state that was read."""
    before = torch.get_rng_state()
    with other_device():
        torch.cuda.manual_seed(3)
        state = torch.cuda.get_rng_state()
        drawn = torch.nn.functional.dropout(torch.ones(100, device="cuda"), 0.5)
        torch.cuda.set_rng_state(state)
        again = torch.nn.functional.dropout(torch.ones(100, device="cuda"), 0.5)
        assert torch.equal(drawn.cpu(), again.cpu()) and 20 < int((drawn == 0).sum()) < 80
    assert torch.equal(torch.get_rng_state(), before)
