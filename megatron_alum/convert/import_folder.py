"""A Hugging Face folder is written as a checkpoint of this project at iteration 0, which any parallel layout can load.

The checkpoint holds weights alone (no optimizer state, no data position): it is a start, for `--init-from`, not a run
to resume. Its config.json keeps that of the Hugging Face folder, so that an export gives every field back.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_alum.checkpoint.folder import FORMAT_VERSION, iteration_folder
from megatron_alum.convert.checkpoint_source import HF_CONFIG_KEY
from megatron_alum.convert.from_hf import hf_vocab_size, load_hf_into_model, model_config_from_hf
from megatron_alum.convert.hf_config import read_hf_config
from megatron_alum.convert.hf_folder import HfFolder, resolve_model_folder
from megatron_alum.convert.output import atomic_folder, require_free
from megatron_alum.convert.to_hf import DTYPES
from megatron_alum.convert.verify import single_rank_model

if TYPE_CHECKING:
    from megatron_alum.models.bert import SplitBert

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


def import_folder(
    model_name: str, save: Path, *, dtype: str | None = None, check: Callable[[Path, Path], None] | None = None
) -> Path:
    """Write the model `model_name` (folder or hub name) as the new run folder `save`; returns the checkpoint's folder.

    `dtype` None keeps the stored one. `check` is called with the Hugging Face folder and the finished checkpoint before
    it takes its name; an error of it leaves nothing behind. Raises: ValueError as `load_hf_into_model`.
    """
    require_free(save, "--save")
    folder = resolve_model_folder(model_name)
    config = model_config_from_hf(folder)
    with atomic_folder(save) as partial:
        with single_rank_model(config, hf_vocab_size(folder)) as model:
            load_hf_into_model(folder, model)
            wanted = DTYPES[dtype] if dtype is not None else _stored_dtype(folder)
            _write_checkpoint(partial, model.to(wanted), folder, _unplaced(folder, model, wanted))
        if check is not None:
            check(folder, iteration_folder(partial, 0))
    return iteration_folder(save, 0)


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype config.json records; float32 where it records none or one that this project does not train in."""
    config = read_hf_config(folder)
    return DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))), torch.float32)


def _unplaced(folder: Path, model: SplitBert, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors that the network has no place for (a RoBERTa's pooler): an export of the unchanged model has them."""
    source, placed = HfFolder(folder), dict(model.named_parameters())
    return {name: source.megatron_tensor(name).to(dtype) for name in source.rows if name not in placed}


def _write_checkpoint(root: Path, model: SplitBert, folder: Path, unplaced: dict[str, Tensor]) -> None:
    from megatron_alum.checkpoint.load import model_sharded_state, whole_sharded_state
    from megatron_alum.checkpoint.save import CheckpointContent, CheckpointSaver

    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "iteration": 0,
        "vocab_size": model.real_vocab_size,
        "padded_vocab_size": model.vocab_size,
        "model": asdict(model.model_config),
        "run": asdict(model.model_config),
        HF_CONFIG_KEY: read_hf_config(folder),
    }
    saver = CheckpointSaver(root, keep_last=1, in_background=False)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = _copy_tokenizer(folder, Path(scratch))
        content = CheckpointContent(
            sharded={"model": {**model_sharded_state(model), **whole_sharded_state(unplaced)}},
            rng={},
            config=config,
            tokenizer=tokenizer,
        )
        try:
            saver.save(0, content)
        finally:
            saver.close()


def _copy_tokenizer(folder: Path, target: Path) -> Path | None:
    """The tokenizer's files of a model folder, alone in `target`; None when it has none."""
    present = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for path in present:
        shutil.copyfile(path, target / path.name)
    return target if present else None
