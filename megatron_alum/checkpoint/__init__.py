"""Checkpoints of a run: folder layout, saving that is complete or absent, loading that runs nobody's code.

The names below need no megatron-core; `save` and `load` do and are imported where they are used.
"""

from megatron_alum.checkpoint.folder import find_checkpoint, read_run_config
from megatron_alum.checkpoint.metadata import read_metadata
from megatron_alum.compat import silence_fallback_warnings

silence_fallback_warnings()

__all__ = ["find_checkpoint", "read_metadata", "read_run_config"]
