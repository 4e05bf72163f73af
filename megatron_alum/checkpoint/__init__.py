"""Checkpoints of a run: folder layout, saving that is complete or absent, loading that runs no foreign code.

The names below need no megatron-core; `save` and `load` do and are imported where they are used.
"""

import warnings

from megatron_alum.checkpoint.folder import find_checkpoint, read_run_config
from megatron_alum.checkpoint.metadata import read_metadata
from megatron_alum.compat import silence_fallback_warnings

silence_fallback_warnings()
# torch announces the end of two names that megatron-core 0.16.1 still calls; users cannot do anything about it.
for _message in (
    r"`load_state_dict` is deprecated",
    r"Please use DTensor instead and we are deprecating ShardedTensor",
):
    warnings.filterwarnings("ignore", message=_message, category=FutureWarning)

__all__ = ["find_checkpoint", "read_metadata", "read_run_config"]
