"""Fixtures of the tests of Algorithm 1."""

import pytest
import torch

from tests.alum.toy import TokenModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TokenModel().double()
