"""The tensors of a Hugging Face folder by the names of our key tables, read one at a time and without running code.

Weights may be model.safetensors, sharded safetensors with their index, or pytorch_model.bin (sharded too), which is
read with weights_only. Names are brought to one form: the old LayerNorm names gamma and beta become weight and bias,
the base model's prefix is added where a bare encoder has none, position buffers and tied copies are left out.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_alum.config.model import ModelConfig
from megatron_alum.convert.foreign import instead_of_a_model
from megatron_alum.convert.hf_config import (
    PARTS_OF,
    architecture_of,
    config_sizes,
    model_config_from_dict,
    read_hf_config,
)
from megatron_alum.convert.hf_model import full_name
from megatron_alum.convert.keys import Part, Row, expand_rows
from megatron_alum.convert.translate import Shape, check_shapes, megatron_tensor
from megatron_alum.data.tokenizers.bare_vocabulary import has_tokenizer

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_BUFFERS = (".position_ids", ".token_type_ids")
TASK_HEADS = ("classifier.", "qa_outputs.", "pre_classifier.")
"""prefixes of the heads that fine-tuning puts on an encoder, in transformers' own classes"""
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
_HALF_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}  # by safetensors' names
HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin")
"""What is fetched of a hub repository: one model in PyTorch form with its tokenizer."""


class HfFolder:
    """A Hugging Face BERT or RoBERTa whose configuration and tensors have been checked against the key table.

    `config` is config.json; `rows` are those of the parts that the folder has: encoder always, pooler, mlm, nsp where
    present. `task_heads` names the tensors of a fine-tuned head, which pre-training has no place for.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: ValueError for a model that cannot be converted, damaged files, tensors missing or left over."""
        self.folder = folder
        self.config: dict[str, Any] = read_hf_config(folder)
        self.architecture = architecture_of(self.config, str(folder / "config.json"))
        self.sizes = config_sizes(self.config, str(folder / "config.json"))
        self._stored = _open_weights(folder)
        self.task_heads = sorted(name for name in self._stored if name.startswith(TASK_HEADS))
        kept = [name for name in self._stored if not name.endswith(_BUFFERS) and name not in self.task_heads]
        self._stored_name = {self._canonical(name): name for name in kept}
        self.rows = {row.megatron: row for row in self._check_names()}

    @property
    def model_config(self) -> ModelConfig:
        """The network that computes what this folder's does."""
        return model_config_from_dict(self.config, str(self.folder / "config.json"))

    @property
    def class_name(self) -> str:
        """The transformers class with the heads that the weights have.

        config.json may name none, a class of its user's own, or one with other heads.
        """
        classes, present = self.architecture.classes, {row.part for row in self.rows.values()}
        fitting = [kind for kind, parts in PARTS_OF.items() if kind in classes and present.issuperset(parts)]
        return classes[fitting[0] if fitting else "encoder"]  # an encoder may lack its pooler

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every weight exactly: a half one where all weights are of it, else float32."""
        dtypes = {self._stored[name].dtype for name in self._stored_name.values()}
        return dtypes.pop() if len(dtypes) == 1 and dtypes.issubset(_HALF_DTYPES.values()) else torch.float32

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder itself where it holds a tokenizer."""
        return self.folder if has_tokenizer(self.folder) else None

    def megatron_tensor(self, name: str) -> Tensor:
        """The whole, unpadded Megatron tensor `name`, in the folder's dtype."""
        row = self.rows[name]
        names = {hf: self._stored_name[full_name(self.architecture, row, hf, bare=False)] for hf in row.hf}
        return megatron_tensor({hf: self._stored[stored].read() for hf, stored in names.items()}, row, self.sizes)

    def _canonical(self, name: str) -> str:
        """A stored name as it is in a model with heads."""
        for old, new in _OLD_NAMES.items():
            if name.endswith(old):
                name = name[: -len(old)] + new
        prefix = self.architecture.prefix
        is_bare = not any(stored.startswith(prefix) for stored in self._stored)
        heads = tuple(n for row in self.architecture.rows if row.part in ("mlm", "nsp") for n in row.hf)
        return prefix + name if is_bare and name not in heads else name

    def _check_names(self) -> list[Row]:
        """The rows present: the whole encoder, and each other part whole or not at all."""
        given = {name: self._stored[stored].shape for name, stored in self._stored_name.items()}
        self._check_copies(given)
        given = {name: shape for name, shape in given.items() if name not in self.architecture.aliases}
        rows: list[Row] = []
        expected: dict[str, Shape] = {}
        for row in expand_rows(self.architecture, self.sizes.num_layers):
            names = [full_name(self.architecture, row, name, bare=False) for name in row.hf]
            if row.part == "encoder" or self._has_part(row.part, given):
                rows.append(row)
                expected |= dict.fromkeys(names, self.sizes.hf_shape(row))
        check_shapes(str(self.folder), given, expected)
        return rows

    def _has_part(self, part: Part, given: Mapping[str, Shape]) -> bool:
        rows = [row for row in self.architecture.rows if row.part == part]
        return any(full_name(self.architecture, row, name, bare=False) in given for row in rows for name in row.hf)

    def _check_copies(self, given: Mapping[str, Shape]) -> None:
        """A repeated tensor (the decoder of a .bin file) must equal its original: our output layer is tied."""
        for copy, original in self.architecture.aliases.items():
            if copy not in given or original not in given:
                continue
            tensors = (self._stored[self._stored_name[name]].read() for name in (copy, original))
            if not torch.equal(*tensors):
                raise ValueError(
                    f"`{copy}` of {self.folder} must equal `{original}`, but differs: models with untied output "
                    "weights cannot be converted."
                )


class _StoredTensor:
    """Shape and dtype of a tensor on disk (float32 may stand for any but the half ones) and how to read it."""

    def __init__(self, shape: Shape, dtype: torch.dtype, read: Callable[[], Tensor]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.read = read


def resolve_model_folder(name_or_path: str) -> Path:
    """A local folder as it is; anything else is a hub name, whose files are fetched into the hub's cache.

    Raises: ValueError when there is no such folder and no such repository can be reached.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if Path(name_or_path).is_file():
        raise ValueError(instead_of_a_model(Path(name_or_path)))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=list(HUB_FILES)))
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name_or_path} must be a model folder or the name of a hub repository, but there is no such folder and "
            f"the hub gives none ({reason})."
        ) from None


def _open_weights(folder: Path) -> dict[str, _StoredTensor]:
    """{stored name: tensor} over all weight files of the folder."""
    for name, open_file in ((_SAFE, _open_safetensors), (_PICKLED, _open_pickled)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return open_file(folder / name)
        if index.is_file():
            tensors: dict[str, _StoredTensor] = {}
            for part in _shard_names(index):
                tensors |= open_file(folder / part)
            return tensors
    raise ValueError(
        instead_of_a_model(folder)
        or f"{folder} must hold {_SAFE} or {_PICKLED} (whole or with an index), but has neither."
    )


def _shard_names(index: Path) -> list[str]:
    """The files an index names, all in its own folder and all there."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} must be an index with a weight_map, but cannot be read ({error!r}).") from None
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"The files of {index} must lie beside it, but {', '.join(missing)} do not. Fetch them again.")
    return names


def _open_safetensors(path: Path) -> dict[str, _StoredTensor]:
    def read(name: str) -> Tensor:
        # Opened anew for each tensor: an open file keeps every page that was read from it in memory.
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            headers = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} must be a whole safetensors file, but is not ({error}). Fetch it again.") from None
    return {
        name: _StoredTensor(shape, _HALF_DTYPES.get(dtype, torch.float32), partial(read, name))
        for name, (shape, dtype) in headers.items()
    }


def _open_pickled(path: Path) -> dict[str, _StoredTensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        unsafe = isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower()
        why = "it names code to run, which is refused" if unsafe else "it is damaged; fetch it again"
        raise ValueError(f"{path} must hold tensors only, but cannot be read: {why}.") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, but does not.")
    return {
        name: _StoredTensor(tuple(value.shape), value.dtype, partial(loaded.__getitem__, name))
        for name, value in loaded.items()
    }
