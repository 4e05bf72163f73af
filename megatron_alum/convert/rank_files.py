"""The `torch` format of stock Megatron-LM: one model_optim_rng.pt a rank, joined into whole tensors.

    iter_0000100/mp_rank_00/model_optim_rng.pt            tensor-parallel rank 0
    iter_0000100/mp_rank_01_002/model_optim_rng.pt        tensor-parallel rank 1, pipeline stage 2

A stage counts its layers from 0 and holds them under `model`; with virtual pipeline stages they lie under `model0`,
`model1`, ..., and the network runs through all stages' model0 first, then through their model1. The first part has the
embeddings, the last one the heads and a copy of the word embeddings as `output_layer.weight`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_alum.convert.inert_pickle import load_inert
from megatron_alum.convert.keys import Architecture, expand_rows
from megatron_alum.convert.translate import Shape

RankGrid = list[list[Path]]
"""[tensor-parallel rank][pipeline stage] -> file"""
_RANK_FOLDER = re.compile(r"^mp_rank_(\d+)(?:_(\d+))?$")
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.*)$")
_WORDS, _TIED_COPY = "embedding.word_embeddings.weight", "output_layer.weight"


def rank_grid(folder: Path) -> RankGrid:
    """The files of all ranks; [] for a folder that has none.

    Raises: ValueError naming the ranks that are missing.
    """
    places = [match for path in folder.iterdir() if (match := _RANK_FOLDER.match(path.name))] if folder.is_dir() else []
    names = {(int(match[1]), int(match[2] or 0)): match[0] for match in places}
    sizes = [1 + max((place[axis] for place in names), default=-1) for axis in (0, 1)]
    absent = [(rank, stage) for rank in range(sizes[0]) for stage in range(sizes[1]) if (rank, stage) not in names]
    if absent:
        listed = ", ".join(f"rank {rank} stage {stage}" for rank, stage in absent)
        raise ValueError(
            f"{folder} must hold the files of {sizes[0]} tensor-parallel ranks and {sizes[1]} pipeline stages, but "
            f"lacks {listed}. Copy the whole folder."
        )
    return [
        [folder / names[rank, stage] / "model_optim_rng.pt" for stage in range(sizes[1])] for rank in range(sizes[0])
    ]


class RankFileTensors:
    """Tensors of all ranks' files, joined over tensor-parallel ranks and pipeline stages."""

    def __init__(self, folder: Path, grid: RankGrid, architecture: Architecture, num_layers: int) -> None:
        """Memory-maps every file. Raises: ValueError for output weights that are not those of the embeddings."""
        self.folder = folder
        self._split: dict[str, int | None] = {_TIED_COPY: 0}
        for row in expand_rows(architecture, num_layers):
            self._split |= {name: row.split for name in (row.megatron, row.alias) if name is not None}
        self._ranks = [join_stages(_parts_in_order(files)) for files in grid]
        self.shapes: dict[str, Shape] = {name: self._joined_shape(name) for name in self._ranks[0]}
        self._check_tied()

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        split = self._split.get(name)
        if split is None:
            return self._ranks[0][name]
        return torch.cat([rank[name] for rank in self._ranks], dim=split)

    def _joined_shape(self, name: str) -> Shape:
        shape = list(self._ranks[0][name].shape)
        split = self._split.get(name)
        if split is not None:
            shape[split] = sum(rank[name].shape[split] for rank in self._ranks)
        return tuple(shape)

    def _check_tied(self) -> None:
        """The last stage's copy of the word embeddings, kept equal in training."""
        if _TIED_COPY not in self.shapes or _WORDS not in self.shapes:
            return
        if any(not torch.equal(rank[_TIED_COPY], rank[_WORDS]) for rank in self._ranks):
            raise ValueError(
                f"`{_TIED_COPY}` of {self.folder} must equal `{_WORDS}`, but differs: models trained with "
                "--untie-embeddings-and-output-weights cannot be converted."
            )


def join_stages(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One rank's tensors from the parts of its network in running order, layers counted through."""
    whole: dict[str, Tensor] = {}
    before = 0
    for part in parts:
        layers = {name: match for name in part if (match := _LAYER.match(name))}
        for name, value in part.items():
            match = layers.get(name)
            whole[name if match is None else f"encoder.layers.{before + int(match[1])}.{match[2]}"] = value
        before += 1 + max((int(match[1]) for match in layers.values()), default=-1)
    return whole


def _parts_in_order(files: Sequence[Path]) -> list[dict[str, Tensor]]:
    """The parts of one tensor-parallel rank's network: virtual stage 0 of every stage, then virtual stage 1, ..."""
    parts: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
    for path in files:
        loaded = load_inert(path)
        names = sorted(
            (name for name in loaded if re.fullmatch(r"model\d*", name)), key=lambda name: int(name[5:] or 0)
        )
        if not names or not all(isinstance(loaded[name], dict) for name in names):
            raise ValueError(f"{path} must hold the weights under `model`, but does not.")
        for virtual, name in enumerate(names):
            parts[virtual].append(_tensors(loaded[name]))
    return [part for virtual in sorted(parts) for part in parts[virtual]]


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
