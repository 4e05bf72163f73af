"""Process groups as an object, seeds and RNG snapshots, vocabulary padding: what depends on the layout of ranks."""

from megatron_alum.parallel.groups import ProcessGroups, initialize, seed_everything, shutdown

__all__ = ["ProcessGroups", "initialize", "seed_everything", "shutdown"]
