"""Every random state that training draws from: torch's generators and megatron-core's tensor-parallel tracker.

Only dropout draws from them. Sampling, masking and the adversarial noise are counter-based and have no state.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker


class TrainingRng:
    """Snapshot and restore of all states of this rank; also the `DropoutState` of the regulariser."""

    def snapshot(self) -> dict[str, Any]:
        """{name: state tensor}; the tracker's states under `tracker`."""
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            "tracker": {name: state.clone() for name, state in get_cuda_rng_tracker().get_states().items()},
        }

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether `state` fits this kind of device: generators of CPU and GPU cannot load each other's states."""
        return (state["cuda"] is not None) == torch.cuda.is_initialized()

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state returned by `snapshot` back."""
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"])
        get_cuda_rng_tracker().set_states({name: tensor.clone() for name, tensor in state["tracker"].items()})
