"""The table of contents of a torch_dist checkpoint, read without trusting it.

`.metadata` is a pickle, and a pickle can run code. It is read here, before megatron-core sees the folder, by an
unpickler that admits the few classes such a table consists of and refuses every other name. Entries of kind "bytes" are
refused too: PyTorch would unpickle them without restrictions, and this project stores tensors only.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

METADATA_FILE = ".metadata"

# {module: names} that a table of contents may use.
ADMITTED: dict[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed.checkpoint.planner": frozenset({"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch": frozenset({"Size"}),
    "collections": frozenset({"OrderedDict"}),
    "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath"}),
}


class _Unpickler(pickle.Unpickler):
    """Admits the names above and torch's dtypes; any other is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in ADMITTED.get(module, frozenset()):
            raise ValueError(
                f"{METADATA_FILE} must describe tensors only, but names {module}.{name}, which could run code. "
                "The checkpoint is refused; load only checkpoints from sources you trust."
            )
        return super().find_class(module, name)


def read_metadata(folder: str | Path, *, tensors_only: bool = True) -> Metadata:
    """The table of contents of a torch_dist folder.

    `tensors_only` refuses entries of kind "bytes"; without it they may be listed, for readers that never load them.
    Raises: ValueError when it is missing, unreadable or names anything but checkpoint classes.
    """
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        raise ValueError(f"{folder} must be a torch_dist checkpoint (iter_0000020/), but has no {METADATA_FILE}.")
    try:
        metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a table of contents, but cannot be read ({error}).") from None
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path} must be a table of contents, but is a {type(metadata).__name__} instead.")
    if tensors_only:
        for name, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, BytesStorageMetadata):
                raise ValueError(
                    f"{path} must describe tensors only, but lists pickled bytes under {name!r}. The checkpoint is "
                    "refused; load only checkpoints from sources you trust."
                )
    return metadata
