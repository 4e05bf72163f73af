"""The first tokens of x as a row of their own, on every layout: values, and gradients that return to their ranks."""

import pytest
import torch

from tests.helpers.distributed import run_ranks
from tests.models.batches import VOCAB_SIZE, make_batch, small_config

FIRST = 24  # of 40 tokens: on two ranks the cut lies inside the second rank's part


def leading_and_gradient(rank, world_size, sequence_parallel):
    """This rank's part of the leading tokens, and of the gradient in x of a function that weights every token."""
    from megatron_alum.models import build_model
    from megatron_alum.parallel import initialize

    groups = initialize(tensor_parallel_size=world_size, sequence_parallel=sequence_parallel)
    model = build_model(small_config("bert"), vocab_size=VOCAB_SIZE, groups=groups)
    whole = torch.arange(40 * 24.0).view(40, 1, 24)
    x = groups.local_tokens(whole).clone().requires_grad_()
    part = model.leading(x, FIRST)
    weights = groups.local_tokens(torch.arange(FIRST * 24.0).view(FIRST, 1, 24))
    (part * weights).sum().backward()
    return part.detach(), x.grad


@pytest.mark.parametrize(("world_size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_values_and_gradients(world_size, sequence_parallel):
    answers = run_ranks(world_size, leading_and_gradient, sequence_parallel)
    parts = answers if sequence_parallel else answers[:1]
    expected = torch.arange(40 * 24.0).view(40, 1, 24)
    gradient = expected.clone()
    gradient[FIRST:] = 0.0
    assert torch.equal(torch.cat([part for part, _ in parts]), expected[:FIRST])
    assert torch.equal(torch.cat([grad for _, grad in parts]), gradient)


def too_few_tokens(rank, world_size):
    from megatron_alum.parallel import initialize

    groups = initialize(tensor_parallel_size=world_size, sequence_parallel=True)
    with pytest.raises(ValueError) as caught:
        groups.local_tokens(make_batch("bert", (16, 13, 10), multiple=1).tokens)
    return str(caught.value)


def test_tokens_that_ranks_cannot_share_are_refused():
    expected = (
        "The tokens of a micro-batch must be a multiple of --tensor-model-parallel-size 2 under --sequence-parallel, "
        "but are 39 instead."
    )
    assert run_ranks(2, too_few_tokens) == [expected] * 2
