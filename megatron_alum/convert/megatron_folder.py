"""Whole Megatron tensors out of a dist_checkpointing folder, in one process, without torchrun, for any parallel layout.

The torch_dist format is PyTorch's distributed checkpoint: `.metadata` says for every tensor its global shape and which
file holds which piece, so the pieces of all tensor-parallel ranks are concatenated while reading. Layers may be stored
as one tensor with the layer in front ([layers, ...], megatron-core's default) or one by one, and LayerNorms under the
local spec's names or folded into the next linear's (Transformer Engine's, and megatron-core's default on disk).

`.metadata` goes through the restricted unpickler of `checkpoint/metadata.py`, tensors are read with weights_only, and
nothing of megatron-core is imported.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from megatron_alum.checkpoint.metadata import read_metadata
from megatron_alum.convert.keys import Architecture
from megatron_alum.convert.translate import Shape, list_names

WORD_TABLE, TIED_COPY = "embedding.word_embeddings.weight", "output_layer.weight"
_BESIDE_THE_MODEL = ("optimizer.", "chained_")
"""prefixes of the optimizer's tensors in a torch_dist folder"""
_EXTRA_STATE = "._extra_state"
"""ends or divides the names of Transformer Engine's scaling statistics, which no 16- or 32-bit forward reads"""


class StoredTensors(Protocol):
    """Tensors on disk, by the names under which they are stored."""

    folder: Path
    shapes: dict[str, Shape]

    def read(self, name: str) -> Tensor:
        """The whole tensor of one stored name, in its stored dtype."""
        ...


class DistributedTensors:
    """The tensors of one torch_dist folder, joined over all ranks when read."""

    def __init__(self, folder: Path) -> None:
        """Read the folder's metadata only. Raises: ValueError when it is not such a folder or its metadata is
        unsafe."""
        self.folder = folder
        self._reader = _Reader(folder)
        stored = self._reader.read_metadata().state_dict_metadata
        self._entries = {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
        self.shapes: dict[str, Shape] = {name: tuple(entry.size) for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor of one stored name, in its stored dtype."""
        entry = self._entries[name]
        target = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
        try:
            with warnings.catch_warnings():
                # The warning says that one process loads everything, which is intended here.
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.load(target, storage_reader=self._reader, no_dist=True)
        except (CheckpointException, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ValueError(
                f"`{name}` must be readable from {self.folder}, but is not ({reason}). "
                "The checkpoint is damaged or incomplete; use another iteration."
            ) from None
        return target[name]


def read_megatron_tensors(stored: StoredTensors, architecture: Architecture, num_layers: int) -> dict[str, Tensor]:
    """{Megatron name: whole tensor} of every row of the architecture that `stored` holds, one name per layer.

    Raises: ValueError when `stored` has a number of layers other than `num_layers`, or an incomplete layer.
    """
    found: dict[str, Tensor] = {}
    for row in architecture.rows:
        if "{i}" not in row.megatron:
            if row.megatron in stored.shapes:
                found[row.megatron] = stored.read(row.megatron)
            continue
        names = [name for name in (row.megatron, row.alias) if name is not None]
        stack = next((s for n in names if (s := n.replace(".{i}", "")) in stored.shapes), None)
        if stack is not None:
            _check_depth(stored, stack, stored.shapes[stack][0], num_layers)
            # Cloned, so that the stack itself is freed: views of one storage would keep all layers alive.
            for i, layer in enumerate(stored.read(stack)):
                found[row.megatron.format(i=i)] = layer.clone()
        elif name := next((n for n in names if n.format(i=0) in stored.shapes), None):
            _check_depth(stored, name, _count_layers(stored.shapes, name), num_layers)
            for i in range(num_layers):
                found[row.megatron.format(i=i)] = stored.read(name.format(i=i))
    if not found:
        raise ValueError(
            f"{stored.folder} must hold a BERT of megatron-core, but none of its tensors is known "
            f"({list_names(stored.shapes)}). Give the folder of a megatron_alum or Megatron-LM BERT checkpoint."
        )
    return found


def template_of(name: str) -> str:
    """A stored name with its layer's number as `{i}`."""
    return re.sub(r"^encoder\.layers\.\d+\.", "encoder.layers.{i}.", name)


def check_all_used(stored: StoredTensors, architecture: Architecture) -> None:
    """Check that every stored tensor of a network is one of ours: one without a row would be ignored.

    Raises: ValueError naming the others, or an output layer with weights of its own.
    """
    known = {TIED_COPY}
    for row in architecture.rows:
        for name in (row.megatron, row.alias):
            known |= set() if name is None else {name, name.replace(".{i}", "")}
    others = [
        name
        for name in stored.shapes
        if template_of(name) not in known and not name.startswith(_BESIDE_THE_MODEL) and _EXTRA_STATE not in name
    ]
    if others:
        raise ValueError(
            f"the tensors of {stored.folder} must be those of a BERT of {architecture.model_type}, but there are also "
            f"{list_names(others)}: a network that uses them computes something else."
        )
    if TIED_COPY in stored.shapes and WORD_TABLE in stored.shapes:
        if stored.shapes[TIED_COPY] != stored.shapes[WORD_TABLE] or not torch.equal(
            stored.read(TIED_COPY), stored.read(WORD_TABLE)
        ):
            raise ValueError(
                f"`{TIED_COPY}` of {stored.folder} must equal `{WORD_TABLE}`, but differs: models trained with "
                "--untie-embeddings-and-output-weights cannot be converted."
            )


def count_layers(stored: StoredTensors) -> int:
    """Number of layers of a network about which nothing else is known, from its feed-forward tensors."""
    stack = stored.shapes.get("encoder.layers.mlp.linear_fc1.weight")
    return stack[0] if stack is not None else _count_layers(stored.shapes, "encoder.layers.{i}.mlp.linear_fc1.weight")


def _count_layers(names: Iterable[str], template: str) -> int:
    before, after = template.split("{i}")
    return sum(name.startswith(before) and name.endswith(after) for name in names)


def _check_depth(stored: StoredTensors, name: str, depth: int, num_layers: int) -> None:
    if depth != num_layers:
        raise ValueError(
            f"`{name}` in {stored.folder} must have {num_layers} layers as its configuration says, but has {depth} "
            "instead. Weights and configuration belong to different models."
        )


class _Reader(dcp.FileSystemReader):
    """PyTorch's reader, with the table of contents read by our unpickler and only once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # Stock checkpoints list pickled extras beside the tensors; they are never requested here.
        self._metadata = read_metadata(folder, tensors_only=False)
        if self._metadata.storage_meta is None:
            self._metadata.storage_meta = StorageMeta()

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self._metadata
