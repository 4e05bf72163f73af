"""Fixtures of the tests on Megatron-LM's own checkpoints."""

import pytest

from tests.convert.models import tokenizer_folder
from tests.helpers.distributed import run_ranks


@pytest.fixture(scope="session")
def rank_files(tmp_path_factory):
    """A checkpoint in the torch format, tensor-parallel size 1, and its tokenizer."""
    from tests.convert.test_stock import save_stock

    root = tmp_path_factory.mktemp("stock")
    run_ranks(1, save_stock, 1, str(root / "iter_0000100"), "torch", False)
    return root / "iter_0000100", tokenizer_folder(root / "tokenizer")
