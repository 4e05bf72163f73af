"""Process groups as an object and the seeds of each rank: what depends on the layout."""

from megatron_alum.parallel.groups import ProcessGroups, initialize, joined, seed_everything, shutdown

__all__ = ["ProcessGroups", "initialize", "joined", "seed_everything", "shutdown"]
