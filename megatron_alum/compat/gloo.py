"""Lets megatron-core sum gradients that lie on a GPU through gloo, which several processes on one GPU need.

megatron-core hands torch the reductions of its gradient buckets as one coalesced list. gloo takes such a list from the
CPU alone ("unsupported device type cuda", torch 2.13), single tensors from a GPU as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _one_after_the_other(_group: Any, *, async_ops: bool) -> Iterator[None]:
    """In the place of torch's manager: each collective within is done when its call returns."""
    assert not async_ops, "nobody would wait for what is begun here"
    yield


def reduce_one_bucket_at_a_time() -> None:
    """From now on megatron-core asks for one reduction a bucket. Not with overlapped communication, which waits for the
    whole list."""
    from megatron.core.distributed import param_and_grad_buffer

    param_and_grad_buffer._coalescing_manager = _one_after_the_other
