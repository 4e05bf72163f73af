"""What an export needs, read from a checkpoint folder of this project: tensors, configuration, tokenizer, records."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_alum.checkpoint.folder import (
    COMPLETE_FILE,
    TOKENIZER_FOLDER,
    find_checkpoint,
    list_iterations,
    read_run_config,
)
from megatron_alum.checkpoint.rows import Rows
from megatron_alum.config.model import ModelConfig
from megatron_alum.convert.foreign import instead_of_a_run
from megatron_alum.convert.hf_config import sizes_of
from megatron_alum.convert.keys import ARCHITECTURES, expand_rows
from megatron_alum.convert.megatron_folder import DistributedTensors, read_megatron_tensors
from megatron_alum.convert.tensors import strip_vocabulary
from megatron_alum.convert.to_hf import ExportSource
from megatron_alum.data.sampling.blend import parse_data_path
from megatron_alum.data.shards.files import shard_paths

HF_CONFIG_KEY = "hf_config"
"""Key of a checkpoint's config.json that keeps the config.json of the model it was imported from."""


def read_checkpoint_source(load: str | Path, tokenizer_dir: Path | None = None) -> ExportSource:
    """The newest valid checkpoint of a run's folder, or one checkpoint's own folder, every file checked by its SHA-256.

    `tokenizer_dir` is for a checkpoint without a tokenizer, such as the import of a model without one.
    Raises: ValueError when there is no checkpoint, its tensors are not those of its configuration, or it has a
    tokenizer of its own beside `tokenizer_dir`.
    """
    given = Path(load)
    is_known_otherwise = not list_iterations(given) and not (given / COMPLETE_FILE).is_file()
    if is_known_otherwise and (reason := instead_of_a_run(given)):
        raise ValueError(reason)
    folder = find_checkpoint(load)
    config = read_run_config(folder)
    model = model_config_of(config, folder)
    architecture = ARCHITECTURES[model.model_type]
    own_tokenizer = folder / TOKENIZER_FOLDER
    if tokenizer_dir is not None and own_tokenizer.is_dir():
        raise ValueError(
            f"--tokenizer must not be given for {folder}, which has its own, but is {tokenizer_dir} instead. "
            "Leave the flag out."
        )
    return ExportSource(
        label=str(folder),
        model=model,
        vocab_size=int(config["vocab_size"]),
        tensors=read_megatron_tensors(DistributedTensors(folder), architecture, model.num_layers),
        tokenizer_dir=own_tokenizer if own_tokenizer.is_dir() else tokenizer_dir,
        original_config=config.get(HF_CONFIG_KEY) or {},
        iteration=int(config["iteration"]),
        run=config["run"],
        manifests=_manifests(config),
        metrics=_metrics(folder.parent / "metrics.jsonl", int(config["iteration"])),
    )


class CheckpointWeights:
    """The tensors of a checkpoint as `load_hf_into_model` reads those of a Hugging Face folder."""

    def __init__(self, source: ExportSource) -> None:
        """`rows` are those that the checkpoint holds."""
        self.folder = Path(source.label)
        self.model_config = source.model
        self.sizes = sizes_of(source.model, source.vocab_size)
        self.tokenizer_dir = source.tokenizer_dir
        self._tensors = source.tensors
        rows = expand_rows(ARCHITECTURES[source.model.model_type], source.model.num_layers)
        self.rows = {row.megatron: row for row in rows if row.megatron in source.tensors}

    def megatron_tensor(self, name: str) -> Tensor:
        """The whole, unpadded tensor."""
        tensor = self._tensors[name]
        return strip_vocabulary(tensor, self.sizes.vocab_size) if self.rows[name].is_vocabulary else tensor


def model_config_of(config: dict[str, Any], folder: Path) -> ModelConfig:
    """The ModelConfig that a checkpoint's configuration describes; options missing from it have their defaults.

    Raises: ValueError when there is none, or it holds an option that this version does not know.
    """
    stored = config.get("model")
    names = {field.name for field in fields(ModelConfig)}
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"`model` in {folder}/config.json must hold the network's options, but does not.")
    if unknown := sorted(set(stored) - names):
        raise ValueError(
            f"`model` in {folder}/config.json must hold options that this version knows, but has {', '.join(unknown)}. "
            "It was written by a newer version; convert it with that one."
        )
    return ModelConfig(**stored)


def _manifests(config: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The manifests of the shards that still exist at the paths of the run."""
    data_path = config["run"].get("data_path")
    prefixes = parse_data_path(data_path)[0] if data_path else []
    paths = [shard_paths(prefix)["json"] for prefix in prefixes]
    return tuple(json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file())


def _metrics(path: Path, iteration: int) -> tuple[dict[str, Any], ...]:
    """Rows of metrics.jsonl up to `iteration`; lines that are not rows are skipped."""
    return tuple(Rows.read(path).up_to(iteration).values)
