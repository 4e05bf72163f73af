"""Builds everything a run needs from its configuration, and turns it into the content of a checkpoint and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_alum.checkpoint.folder import FORMAT_VERSION, TOKENIZER_FOLDER
from megatron_alum.checkpoint.load import load_checkpoint, load_rng, model_sharded_state
from megatron_alum.checkpoint.save import CheckpointContent
from megatron_alum.config.cli import config_to_dict
from megatron_alum.config.run import RunConfig
from megatron_alum.convert import HF_CONFIG_KEY, hf_vocab_size, load_hf_into_model, original_hf_config
from megatron_alum.data.sampling.blend import parse_data_path
from megatron_alum.data.sampling.dataset import Datasets, open_datasets
from megatron_alum.data.shards.files import read_manifest, shard_paths
from megatron_alum.models import SplitBert, build_model
from megatron_alum.objective.losses import Objective
from megatron_alum.objective.rng import TrainingRng
from megatron_alum.parallel import ProcessGroups, seed_everything
from megatron_alum.training.control import Watch
from megatron_alum.training.optimizer import build_optimizer, load_optimizer, wrap_data_parallel
from megatron_alum.training.optimizer_state import own_tensors, to_save
from megatron_alum.training.parameter_gather import wait_for_all
from megatron_alum.training.step import Trainable


@dataclass
class TrainState(Trainable):
    """A `Trainable` with its data, its layout and its place in the run."""

    groups: ProcessGroups
    """process groups of this rank"""
    datasets: Datasets
    """training and validation samples"""
    iteration: int = 0
    """iterations done"""
    consumed_samples: int = 0
    """samples trained on, the global index of the next one: the global batch size may have changed on a resume"""
    skipped: int = 0
    """iterations skipped because the gradient was not finite"""
    hf_config: dict[str, Any] = field(default_factory=dict)
    """config.json of the Hugging Face model the weights came from, for the export; empty for a run started from
    scratch"""

    @property
    def network(self) -> SplitBert:
        """The bare network below the data-parallel wrapper."""
        return self.objective.model


def open_run_data(config: RunConfig, stored: Mapping[str, Any] | None = None) -> Datasets:
    """The samples of a run, fresh or continued from a checkpoint whose config.json is `stored`.

    The mask rate rises over the samples of the whole run: those of the checkpoint, then the present global batches.
    Raises: ValueError for unusable shards.
    """
    iterations, samples = (0, 0) if stored is None else (stored["iteration"], stored["consumed_samples"])
    to_come = max(0, config.training.train_iters - iterations) * config.training.global_batch_size
    return open_datasets(
        config.data,
        model_type=config.model.model_type,
        seq_length=config.model.seq_length,
        train_samples=samples + to_come,
        seed=config.training.seed,
    )


def build_state(config: RunConfig, groups: ProcessGroups, *, stored: Mapping[str, Any] | None = None) -> TrainState:
    """Fresh model, optimizer and data of a run. Collective over all ranks.

    A resume passes as `stored` the config.json of the checkpoint that it loads over them, and --init-from is not read.
    """
    config.data_parallel_size(groups.ranks_per_model * groups.dp_size)
    datasets = open_run_data(config, stored)
    seed_everything(config.training.seed, groups)
    network = build_model(
        config.model,
        vocab_size=_network_vocab_size(config, datasets, stored),
        groups=groups,
        dtype=getattr(torch, config.precision.dtype_name),
        seed=config.training.seed,
        recompute=config.compute.recompute_granularity,
        torch_compile=config.compute.torch_compile,
    )
    hf_config: dict[str, Any] = {}
    if stored is None and config.checkpoint.init_from is not None:
        load_hf_into_model(config.checkpoint.init_from, network, tokenizer_dir=datasets.tokenizer_dir)
        hf_config = original_hf_config(config.checkpoint.init_from)
    network.train()
    model = wrap_data_parallel(network, config)
    return TrainState(
        config=config,
        model=model,
        optimizer=build_optimizer(model, config),
        objective=Objective(network, config),
        watch=Watch(groups.world_rank),
        groups=groups,
        datasets=datasets,
        hf_config=hf_config,
    )


def _network_vocab_size(config: RunConfig, datasets: Datasets, stored: Mapping[str, Any] | None) -> int:
    """Vocabulary size of the network: the tokenizer's, or that of the model the weights come from.

    Many published models have more rows than tokens, for speed or for later additions; the rows are kept and exported.
    """
    if stored is not None:
        return int(stored["vocab_size"])
    if config.checkpoint.init_from is None:
        return datasets.vocab_size
    rows = hf_vocab_size(config.checkpoint.init_from)
    if rows < datasets.vocab_size:
        raise ValueError(
            f"--init-from must name a model of at least the {datasets.vocab_size} tokens of the shards' tokenizer, but "
            f"{config.checkpoint.init_from} has {rows}. Preprocess the corpus with the tokenizer of that model."
        )
    return rows


def data_fingerprint(config: RunConfig, *, weights: Sequence[float] | None) -> str:
    """SHA-256 over the manifests of all shards in order: it changes when the corpus does, not when it moves.

    The `weights` of the blend, the run's own or those of a checkpoint to compare with, are hashed as well.
    Raises: ValueError for missing shards.
    """
    prefixes, _ = parse_data_path(config.data.data_path)
    digest = hashlib.sha256(json.dumps(weights).encode())
    for prefix in prefixes:
        path = shard_paths(prefix)["json"]
        if not path.is_file():
            raise ValueError(
                f"--data-path must name shards from megatron-alum preprocess, but `{path}` does not exist. A corpus "
                "that was moved is recognised by its fingerprint: give its new location with --data-path."
            )
        digest.update(json.dumps(read_manifest(path)["files"], sort_keys=True).encode())
    return digest.hexdigest()


def checkpoint_content(state: TrainState) -> CheckpointContent:
    """This rank's part of what `load_into` needs."""
    wait_for_all(state.model)
    model = model_sharded_state(state.network)
    return CheckpointContent(
        sharded={"model": model, "optimizer": to_save(state.optimizer, model)},
        rng=TrainingRng().snapshot(),
        config=describe(state),
        tokenizer=state.datasets.tokenizer_dir,
    )


def describe(state: TrainState) -> dict[str, Any]:
    """config.json of a checkpoint: what a resume, a conversion or a reader must know."""
    import megatron.core

    return {
        "format_version": FORMAT_VERSION,
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "skipped": state.skipped,
        "vocab_size": state.network.real_vocab_size,
        "padded_vocab_size": state.network.vocab_size,
        "model": dataclasses.asdict(state.config.model),
        "run": config_to_dict(state.config),
        "layout": {
            "world_size": state.groups.ranks_per_model * state.groups.dp_size,
            "tensor_parallel_size": state.groups.tp_size,
            "pipeline_parallel_size": state.groups.pp_size,
            "data_parallel_size": state.groups.dp_size,
            "sequence_parallel": state.groups.sequence_parallel,
        },
        "data_sha256": data_fingerprint(state.config, weights=parse_data_path(state.config.data.data_path)[1]),
        "tokenizer": TOKENIZER_FOLDER,
        HF_CONFIG_KEY: state.hf_config,
        "versions": {
            "torch": torch.__version__,
            "megatron_core": megatron.core.__version__,
            "python": platform.python_version(),
        },
    }


def load_into(state: TrainState, folder: Path, stored: dict[str, Any]) -> None:
    """Continue from a checkpoint whose config.json is `stored`, saved on this layout or another. Collective.

    On the same layout and kind of device the random states continue, so that the run continues bit for bit; otherwise
    they are seeded again from the seed and the iteration.
    """
    state.hf_config = stored.get(HF_CONFIG_KEY, {})
    model, groups = model_sharded_state(state.network), state.groups
    (part,) = state.optimizer.chained_optimizers
    if isinstance(part, DistributedOptimizer):
        loaded = load_checkpoint(folder, {"model": model}, groups.world, copies=groups.dp)
        load_optimizer(state.optimizer, loaded["optimizer"])
        load_checkpoint(folder, own_tensors(part, model_sharded_state(state.network)), groups.world)
    else:
        optimizer = state.optimizer.sharded_state_dict(model, is_loading=True)
        loaded = load_checkpoint(folder, {"model": model, "optimizer": optimizer}, groups.world, copies=groups.dp)
        load_optimizer(state.optimizer, loaded["optimizer"])
    state.network.load_state_dict(loaded["model"], strict=False)
    state.iteration, state.skipped = stored["iteration"], stored["skipped"]
    state.consumed_samples = stored["consumed_samples"]
    is_same_layout = stored["layout"] == describe(state)["layout"]
    rng = load_rng(folder, state.groups.world_rank) if is_same_layout else None
    if rng is not None and TrainingRng().fits(rng):
        TrainingRng().restore(rng)
    else:
        seed_everything(state.config.training.seed + state.iteration, state.groups)
