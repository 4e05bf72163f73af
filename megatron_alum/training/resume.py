"""Whether and from where a run continues, and what may not have changed since."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_alum.checkpoint.folder import iteration_folder, list_iterations, read_run_config
from megatron_alum.checkpoint.load import newest_valid
from megatron_alum.config.cli import config_to_dict
from megatron_alum.config.run import RunConfig
from megatron_alum.convert.foreign import instead_of_a_run
from megatron_alum.parallel import ProcessGroups
from megatron_alum.training.state import data_fingerprint

Resume = tuple[Path, dict[str, Any]]
"""a checkpoint and its config.json"""

MODEL_OPTIONS = (
    "model_type",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "ffn_hidden_size",
    "max_position_embeddings",
    "first_position",
    "layernorm_epsilon",
)
"""decide the shapes and the function of the network: never different"""
OPTIMIZER_OPTIONS = ("bf16", "fp16", "use_distributed_optimizer")
"""decide what the optimizer keeps: never different"""
SCHEDULE_OPTIONS = (
    "train_iters",
    "global_batch_size",
    "seed",
    "seq_length",
    "objective",
    "split",
    "short_seq_prob",
    "masking",
    "mask_rate_start",
    "mask_rate_end",
    "mask_rate_steps",
    "lr_warmup_fraction",
    "alum_start_fraction",
)
"""decide which samples an iteration sees and at what rates: different with --override-schedule only"""


def network_of_newest(load: str | None) -> dict[str, Any] | None:
    """The network's options {name: value} in the newest readable config.json below `load`; None where there is none.

    Read before the ranks have met, so no file is compared with its SHA-256: `find_resume` does that.
    """
    root = Path(load or "")
    for iteration in reversed(list_iterations(root) if load else []):
        try:
            saved = read_run_config(iteration_folder(root, iteration))["run"]
        except ValueError:
            continue
        names = (*MODEL_OPTIONS, "hidden_dropout", "attention_dropout")
        return {name: saved[name] for name in names if name in saved}
    return None


def check_save_folder(config: RunConfig) -> None:
    """Raises: ValueError when --save holds checkpoints that this run would mix with its own."""
    save, load = config.checkpoint.save, config.checkpoint.load
    if save is None or not list_iterations(Path(save)):
        return
    if load is None or Path(load).resolve() != Path(save).resolve():
        raise ValueError(
            f"--save must be a folder without checkpoints, but {save} holds some. "
            f"Continue that run with --load {save}, or choose another folder."
        )


def find_resume(config: RunConfig, groups: ProcessGroups) -> Resume | None:
    """The checkpoint to continue from with its config.json; None for a fresh start. Collective.

    Raises: ValueError when it belongs to another model, schedule or corpus.
    """
    if config.checkpoint.load is None:
        return None
    load = Path(config.checkpoint.load)
    if load.exists() and not list_iterations(load) and (reason := instead_of_a_run(load)):
        raise ValueError(f"--load: {reason}")
    folder = newest_valid(config.checkpoint.load, groups.world)
    if folder is None:
        if dist.get_rank(groups.world) == 0:
            print(
                f"WARNING: --load {config.checkpoint.load} holds no valid checkpoint; starting fresh.", file=sys.stderr
            )
        return None
    stored = read_run_config(folder)
    check_compatible(config, stored, folder)
    return folder, stored


def check_compatible(config: RunConfig, stored: dict[str, Any], folder: Path) -> None:
    """Raises: ValueError naming the first option in which the run must equal the checkpoint but does not."""
    if "layout" not in stored:
        raise ValueError(
            f"--load must name a run to continue, but {folder} holds weights alone (of tools/convert_checkpoint.py). "
            "Start a run from them with --init-from instead."
        )
    options, saved = config_to_dict(config), stored["run"]
    for name in MODEL_OPTIONS:
        if options[name] != saved.get(name, options[name]):
            raise ValueError(
                _differs(name, saved[name], options[name], folder) + " Another model needs another --load."
            )
    for name in OPTIMIZER_OPTIONS:
        if options[name] != saved[name]:
            raise ValueError(
                _differs(name, saved[name], options[name], folder) + " The optimizer's state depends on it."
            )
    for name in SCHEDULE_OPTIONS:
        if options[name] != saved[name] and not config.training.override_schedule:
            raise ValueError(_differs(name, saved[name], options[name], folder) + " Or pass --override-schedule.")
    if data_fingerprint(config) != stored["data_sha256"]:
        raise ValueError(
            f"--data-path must name the corpus that {folder} was trained on, but its files differ (by their SHA-256). "
            "Restore that corpus, or start a new run."
        )


def _differs(name: str, saved: Any, given: Any, folder: Path) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag} must be {saved} as in {folder}, but is {given} instead."
