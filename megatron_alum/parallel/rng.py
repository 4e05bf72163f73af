"""Snapshot and restore of every generator that dropout draws from on this rank.

That is torch's default generator (embedding and hidden dropout, equal within a tensor-parallel group) and the named
states of megatron-core's tracker (attention dropout, and all dropout under sequence parallelism).
`alum.AlumRegularizer` takes a `TensorParallelDropoutState` for `dropout="shared"`; checkpoints store the same
snapshot.
"""

from dataclasses import dataclass

import torch
from megatron.core import tensor_parallel


@dataclass(frozen=True)
class RngSnapshot:
    """Generator states of one rank: CPU, CUDA device (None without one), tracker states by name."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None
    tracker: dict[str, torch.Tensor]


class TensorParallelDropoutState:
    """The dropout generators of this rank, in the form `alum` asks for (`alum.dropout.DropoutState`)."""

    def snapshot(self) -> RngSnapshot:
        """The current states; unaffected by later draws."""
        return RngSnapshot(
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            tracker=tensor_parallel.get_cuda_rng_tracker().get_states(),
        )

    def restore(self, state: RngSnapshot) -> None:
        """Puts a snapshot back; it can be restored any number of times."""
        torch.set_rng_state(state.cpu)
        if state.cuda is not None:
            torch.cuda.set_rng_state(state.cuda)
        tensor_parallel.get_cuda_rng_tracker().set_states(dict(state.tracker))
