"""What Megatron-LM stores beside the tensors of a torch_dist folder: its arguments and the iteration.

megatron-core before 0.19 writes them to a file of their own, common.pt; later releases among the tensors, as pickled
bytes in one of the .distcp files, at a place that `.metadata` gives. Both are read without running code
(inert_pickle.py), whichever release is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from megatron_alum.checkpoint.metadata import METADATA_FILE, read_metadata
from megatron_alum.convert.inert_pickle import load_inert, load_inert_entry

_OWN_FILE, _ENTRY = "common.pt", "common_state/shard_0_1"
_FORMAT_FILE = "metadata.json"
"""names the format; PyTorch's own distributed checkpoints have none"""


def may_have_common_state(folder: Path) -> bool:
    """Whether the names of the files in `folder` are those of a torch_dist checkpoint, ours or Megatron-LM's."""
    named = all((folder / name).is_file() for name in (METADATA_FILE, _FORMAT_FILE))
    return named or (folder / _OWN_FILE).is_file()


def read_common_state(folder: Path) -> dict[str, Any]:
    """The values stored beside the tensors. Raises: ValueError when they are missing, damaged, or name foreign code."""
    if (folder / _OWN_FILE).is_file():
        return load_inert(folder / _OWN_FILE)
    return load_inert_entry(_stored_bytes(read_metadata(folder, tensors_only=False), folder), f"{_ENTRY} of {folder}")


def _stored_bytes(metadata: Metadata, folder: Path) -> bytes:
    places = [place for index, place in (metadata.storage_data or {}).items() if index.fqn == _ENTRY]
    try:
        if not places:
            raise OSError("it is not in the table of contents")
        with (folder / places[0].relative_path).open("rb") as file:
            file.seek(places[0].offset)
            return file.read(places[0].length)
    except OSError as error:
        raise ValueError(
            f"The arguments of Megatron-LM must be in {folder}, as {_OWN_FILE} or as {_ENTRY} among the tensors, but "
            f"cannot be read ({error}). The checkpoint is damaged or incomplete; use another iteration."
        ) from None
