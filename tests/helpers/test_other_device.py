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
