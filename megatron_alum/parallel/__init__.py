"""Process groups as an object, seeds, RNG snapshots: what depends on the layout of ranks."""

from megatron_alum.parallel.groups import ProcessGroups, initialize, seed_everything, shutdown
from megatron_alum.parallel.rng import RngSnapshot, TensorParallelDropoutState

__all__ = [
    "ProcessGroups",
    "RngSnapshot",
    "TensorParallelDropoutState",
    "initialize",
    "seed_everything",
    "shutdown",
]
