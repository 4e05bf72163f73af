"""Snapshot and restore of the random state that dropout draws from.

With `AlumConfig.dropout = "shared"` the adversarial passes rerun the clean pass's dropout masks: the caller takes a
snapshot right before the clean call of `forward_from_embeddings` and hands it to the regulariser, which puts it back
before each adversarial forward. A caller with more generators than torch's own (Megatron's tensor-parallel RNG
tracker) passes its own `DropoutState`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class DropoutState(Protocol):
    """Access to every generator that the model's dropout uses."""

    def snapshot(self) -> Any:
        """The current state, whatever `restore` understands."""

    def restore(self, state: Any) -> None:
        """Put a state returned by `snapshot` back."""


class TorchDropoutState:
    """The default generators of torch: the CPU's and, where CUDA is in use, the current device's."""

    def snapshot(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States of the CPU generator and of the current CUDA device's, None where CUDA is not initialised."""
        return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        """Put both states back."""
        cpu, cuda = state
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


@contextmanager
def replayed(dropout: DropoutState, state: Any | None) -> Iterator[None]:
    """Run the body from `state` and return the generators to where they were; nothing happens when `state` is None."""
    if state is None:
        yield
        return
    current = dropout.snapshot()
    dropout.restore(state)
    try:
        yield
    finally:
        dropout.restore(current)
