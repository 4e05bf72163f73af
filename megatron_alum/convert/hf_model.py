"""A transformers model from translated tensors, and in the other direction, which of its tensors belong to which part
of ours.

Names here are those of a model with heads ("bert.encoder..."); in a bare encoder the prefix is absent. Tied tensors are
never written explicitly: transformers ties them again after loading and omits the copies when saving.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_alum.config.words import not_one_of
from megatron_alum.convert.hf_config import PARTS_OF, ExportKind
from megatron_alum.convert.keys import Architecture, Row, expand_rows
from megatron_alum.convert.translate import Sizes, hf_tensors

# Rows of the base model carry the prefix, heads do not.
_BASE_PARTS = ("encoder", "pooler")


def full_name(architecture: Architecture, row: Row, name: str, *, bare: bool) -> str:
    """The state-dict name of a row's Hugging Face tensor in a bare encoder or in a model with heads."""
    return f"{architecture.prefix}{name}" if row.part in _BASE_PARTS and not bare else name


def export_rows(architecture: Architecture, sizes: Sizes, kind: ExportKind, available: Iterable[str]) -> list[Row]:
    """The rows that an export of `kind` consists of; a bare encoder has a pooler only if the source has one.

    Raises: ValueError when `kind` does not exist for this architecture.
    """
    if kind not in architecture.classes:
        raise ValueError(not_one_of(f"--architecture of {architecture.model_type}", kind, architecture.classes))
    names = set(available)
    rows = [row for row in expand_rows(architecture, sizes.num_layers) if row.part in PARTS_OF[kind]]
    return [row for row in rows if kind != "encoder" or row.part != "pooler" or row.megatron in names]


def export_state_dict(
    megatron: Mapping[str, Tensor], architecture: Architecture, sizes: Sizes, kind: ExportKind
) -> dict[str, Tensor]:
    """{transformers name: tensor} of an export, tied copies left out."""
    state: dict[str, Tensor] = {}
    for row in export_rows(architecture, sizes, kind, megatron):
        for name, tensor in hf_tensors(megatron, [row], sizes).items():
            state[full_name(architecture, row, name, bare=kind == "encoder")] = tensor
    return state


def build_hf_model(
    architecture: Architecture, kind: ExportKind, fields: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Any:
    """A transformers model around the tensors of `state`, which are not copied. It is only meant to be saved.

    Buffers that no state dict holds (position_ids) stay on the meta device: load the saved folder to run it.
    """
    import transformers

    model_class = getattr(transformers, architecture.classes[kind])
    config = model_class.config_class(**fields)
    arguments = {}
    if kind == "encoder" and not any(name.startswith("pooler.") for name in state):
        arguments["add_pooling_layer"] = False
    with torch.device("meta"):
        model = model_class(config, **arguments)
    missing, unknown = model.load_state_dict(dict(state), strict=False, assign=True)
    missing = [name for name in missing if name not in architecture.aliases]
    assert not missing and not unknown, f"key table and transformers disagree: missing {missing}, unknown {unknown}"
    model.tie_weights()
    dtypes = {tensor.dtype for tensor in state.values()}
    model.config.dtype = dtypes.pop() if len(dtypes) == 1 else None
    return model
