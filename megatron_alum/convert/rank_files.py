"""The `torch` format of stock Megatron-LM: one model_optim_rng.pt per rank, joined into whole tensors.

    iter_0000100/mp_rank_00/model_optim_rng.pt            tensor-parallel rank 0
    iter_0000100/mp_rank_01_002/model_optim_rng.pt        tensor-parallel rank 1, pipeline stage 2
    release/mp_rank_00/model_optim_rng.pt                 a published model; the tracker says `release`

A stage counts its layers from 0 and stores them under `model`; with virtual pipeline stages they are under `model0`,
`model1`, ..., and the network consists of all stages' model0 first, then their model1. The first part has the
embeddings, the last one the heads and a copy of the word embeddings as `output_layer.weight`. `legacy.py` converts
the layout from before megatron-core to these names, rank by rank.
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
from megatron_alum.convert.keys import Architecture
from megatron_alum.convert.legacy import is_legacy, megatron_core_tensors, read_version
from megatron_alum.convert.megatron_folder import TIED_COPY, template_of
from megatron_alum.convert.translate import Shape

RankGrid = list[list[Path]]
"""[tensor-parallel rank][pipeline stage] -> file"""
_RANK_FOLDER = re.compile(r"^mp_rank_(\d+)(?:_(\d+))?$")
_FILES = ("model_optim_rng.pt", "model_rng.pt")
"""the second if the optimizer's state was in a separate file (2022 and 2023)"""
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.*)$")


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
    return [[_file_in(folder / names[rank, stage]) for stage in range(sizes[1])] for rank in range(sizes[0])]


def _file_in(folder: Path) -> Path:
    return next((folder / name for name in _FILES if (folder / name).is_file()), folder / _FILES[0])


class RankFileTensors:
    """Tensors of all ranks' files, joined over tensor-parallel ranks and pipeline stages."""

    def __init__(
        self, folder: Path, contents: Sequence[Sequence[Mapping[str, Any]]], architecture: Architecture
    ) -> None:
        """`contents` are the files of `rank_grid`, loaded."""
        self.folder = folder
        self._split: dict[str, int | None] = {TIED_COPY: 0}
        for row in architecture.rows:
            self._split |= {name: row.split for name in (row.megatron, row.alias) if name is not None}
        self._ranks = [join_stages(parts_in_order(stages)) for stages in contents]
        self.shapes: dict[str, Shape] = {name: self._joined_shape(name) for name in self._ranks[0]}

    def read(self, name: str) -> Tensor:
        """The whole tensor."""
        split = self._split.get(template_of(name))
        if split is None:
            return self._ranks[0][name]
        return torch.cat([rank[name] for rank in self._ranks], dim=split)

    def _joined_shape(self, name: str) -> Shape:
        shape = list(self._ranks[0][name].shape)
        split = self._split.get(template_of(name))
        if split is not None:
            shape[split] = sum(rank[name].shape[split] for rank in self._ranks)
        return tuple(shape)


def load_rank_files(grid: RankGrid) -> list[list[dict[str, Any]]]:
    """The content of every file, tensors memory-mapped. Raises: ValueError for a file without weights."""
    contents = [[load_inert(path) for path in stages] for stages in grid]
    for stages, paths in zip(contents, grid, strict=True):
        for content, path in zip(stages, paths, strict=True):
            names = _part_names(content)
            if not names or not all(isinstance(content[name], dict) for name in names):
                raise ValueError(f"{path} must hold the weights under `model`, but does not.")
    return contents


def with_megatron_core_names(
    contents: Sequence[Sequence[dict[str, Any]]], num_heads: int, folder: Path
) -> list[list[dict[str, Any]]]:
    """The contents, converted from the layout from before megatron-core if need be; `num_heads` of all ranks.

    Raises: ValueError for an unknown checkpoint_version.
    """
    own_heads = max(1, num_heads // len(contents))
    return [[_renamed(content, own_heads, folder) for content in stages] for stages in contents]


def _renamed(content: dict[str, Any], num_heads: int, folder: Path) -> dict[str, Any]:
    legacy = [name for name in _part_names(content) if is_legacy(content[name])]
    if not legacy:
        return content
    try:
        version = read_version(content)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    parts = {name: megatron_core_tensors(content[name], version=version, num_heads=num_heads) for name in legacy}
    return {**content, **parts}


def join_stages(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One rank's tensors from the parts of its network in execution order, with layers numbered consecutively."""
    whole: dict[str, Tensor] = {}
    before = 0
    for part in parts:
        layers = {name: match for name in part if (match := _LAYER.match(name))}
        for name, value in part.items():
            match = layers.get(name)
            whole[name if match is None else f"encoder.layers.{before + int(match[1])}.{match[2]}"] = value
        before += 1 + max((int(match[1]) for match in layers.values()), default=-1)
    return whole


def parts_in_order(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """The parts of one tensor-parallel rank's network: virtual stage 0 of every stage, then virtual stage 1, ..."""
    parts: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
    for content in stages:
        for virtual, name in enumerate(_part_names(content)):
            parts[virtual].append({key: value for key, value in content[name].items() if isinstance(value, Tensor)})
    return [part for virtual in sorted(parts) for part in parts[virtual]]


def _part_names(content: Mapping[str, Any]) -> list[str]:
    """model, or model0, model1, ... in order."""
    return sorted((name for name in content if re.fullmatch(r"model\d*", name)), key=lambda name: int(name[5:] or 0))
