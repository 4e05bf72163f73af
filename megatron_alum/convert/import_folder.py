"""Writes a Hugging Face folder as a checkpoint of this project at iteration 0, which any parallel layout can load.

The checkpoint holds only weights (no optimizer state, no data position): it is a starting point for `--init-from`, not
a run to resume. Its config.json keeps that of the Hugging Face folder, so that an export restores every field.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megatron_alum.checkpoint.folder import FORMAT_VERSION, iteration_folder
from megatron_alum.convert.checkpoint_source import HF_CONFIG_KEY
from megatron_alum.convert.from_hf import hf_vocab_size, load_hf_into_model, model_config_from_hf
from megatron_alum.convert.hf_config import read_hf_config
from megatron_alum.convert.hf_folder import HfFolder, resolve_model_folder
from megatron_alum.convert.output import atomic_folder, require_free
from megatron_alum.convert.to_hf import DTYPES
from megatron_alum.convert.tokenizer_files import import_tokenizer
from megatron_alum.convert.verify import single_rank_model

if TYPE_CHECKING:
    from megatron_alum.models.bert import SplitBert


def import_folder(
    model_name: str, save: Path, *, dtype: str | None = None, check: Callable[[Path, Path], None] | None = None
) -> Path:
    """Write the model `model_name` (folder or hub name) as the new run folder `save`; returns the checkpoint's folder.

    `dtype` None keeps that of the stored tensors. `check` is called with the Hugging Face folder and the finished
    checkpoint before the latter gets its name; if it raises, nothing is left behind. Raises: ValueError as
    `load_hf_into_model`.
    """
    require_free(save, "--save")
    folder = resolve_model_folder(model_name)
    config = model_config_from_hf(folder)
    with atomic_folder(save) as partial:
        with single_rank_model(config, hf_vocab_size(folder)) as model:
            unplaced = _fill(model, folder, dtype)
            _write_checkpoint(partial, model, folder, unplaced)
        if check is not None:
            check(folder, iteration_folder(partial, 0))
    return iteration_folder(save, 0)


def _fill(model: SplitBert, folder: Path, dtype: str | None) -> dict[str, Tensor]:
    """Load `model` and cast it to `dtype`, None being that of the stored tensors (config.json may say another).

    Returns the tensors that the network has no place for (a RoBERTa's pooler): an export of the unchanged model has
    them.
    """
    load_hf_into_model(folder, model)
    source, placed = HfFolder(folder), dict(model.named_parameters())
    wanted = source.dtype if dtype is None else DTYPES[dtype]
    model.to(wanted)
    return {name: source.megatron_tensor(name).to(wanted) for name in source.rows if name not in placed}


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
        HF_CONFIG_KEY: {**read_hf_config(folder), "architectures": [HfFolder(folder).class_name]},
    }
    saver = CheckpointSaver(root, keep_last=1, in_background=False)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = Path(scratch) if import_tokenizer(folder, Path(scratch), model.real_vocab_size) else None
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
