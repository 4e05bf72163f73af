"""A world of one rank inside the test process, for everything that does not need tensor parallelism."""

import pytest

from megatron_alum.parallel import initialize, seed_everything, shutdown


@pytest.fixture(scope="package")
def one_rank():
    """Process groups of a single rank."""
    groups = initialize(tensor_parallel_size=1)
    yield groups
    shutdown()


@pytest.fixture
def groups(one_rank):
    """The single rank with its RNG streams at their start."""
    seed_everything(11, one_rank)
    return one_rank
