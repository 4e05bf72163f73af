"""The options of a run as its checkpoints store them: what each belongs to, what a resume takes over, how old formats
are read.

A resume without a flag takes the run's value for everything that belongs to the run. KINDS classifies every option of
RunConfig; `tests/training/test_resume_options.py` fails if a field of a configuration has no kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from enum import Enum
from functools import cache
from typing import Any

from megatron_alum.config.data import DataConfig
from megatron_alum.config.fields import Option, options_of, plain
from megatron_alum.config.model import ModelConfig
from megatron_alum.config.run import RunConfig


class Kind(Enum):
    """What a resume does with an option. All but INVOCATION belong to the run and are kept unless a flag is given."""

    NETWORK = "Another model needs another --load."
    """shapes and function of the network: can never change"""
    STATE = "The optimizer's state depends on it."
    """what the optimizer keeps: can never change"""
    SCHEDULE = "Or pass --override-schedule."
    """which samples an iteration sees, at what rates and in which phase: can change only with --override-schedule"""
    CORPUS = "Restore that corpus, or start a new run."
    """compared by the fingerprint of its files and by its weights: it may be moved"""
    METHOD = ""
    """can change by flag; the change is printed"""
    INVOCATION = "not kept"
    """of one invocation or machine"""


KINDS: dict[Kind, tuple[str, ...]] = {
    Kind.NETWORK: (
        *("model_type", "num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size"),
        *("max_position_embeddings", "first_position", "layernorm_epsilon"),
    ),
    Kind.STATE: ("bf16", "fp16", "use_distributed_optimizer"),
    Kind.SCHEDULE: (
        *("train_iters", "global_batch_size", "seed", "seq_length"),
        *("split", "objective", "short_seq_prob", "masking", "max_ngram"),
        *("mask_rate_start", "mask_rate_end", "mask_rate_steps"),
        *("lr_warmup_fraction", "alum_start_fraction"),
    ),
    Kind.CORPUS: ("data_path",),
    Kind.METHOD: (
        *("hidden_dropout", "attention_dropout", "init_method_std", "make_vocab_size_divisible_by"),
        *("alum_ascent", "alum_alpha", "alum_epsilon", "alum_step_size", "alum_noise_std", "alum_num_ascent_steps"),
        *("alum_projection", "alum_perturb", "alum_perturb_layer", "alum_dropout", "alum_inner_divergence"),
        *("alum_inner_reduction", "alum_detach_targets", "alum_detach_embeddings", "alum_nsp", "alum_batch_fraction"),
        *("alum_head_chunk_rows", "lr", "min_lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad"),
        *("initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis"),
        *("micro_batch_size", "eval_interval", "eval_iters", "max_consecutive_skips"),
        *("save_interval", "keep_last", "log_interval"),
    ),
    Kind.INVOCATION: (
        *("data_cache_path", "sampler", "sampler_threads", "prefetch_batches"),
        "model_size",  # represented by its sizes
        *("token_multiple", "exit_interval", "override_schedule"),
        *("tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel"),
        *("overlap_grad_reduce", "overlap_param_gather"),
        *("distributed_backend", "distributed_timeout_minutes"),
        *("recompute_granularity", "torch_compile", "manual_gc_interval"),
        "grad_reduce_in_bf16",
        *("check_weight_hash_across_dp_replicas_interval", "profile_step_start", "profile_step_end"),
        *("save", "load", "async_save", "init_from"),
        *("tensorboard_dir", "wandb_project", "progress_bar", "peak_tflops", "dry_run"),
    ),
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}

_BEFORE: dict[str, Any] = {"alum_inner_reduction": "batch"}
"""what a run whose stored options lack the name did, if that is not today's default"""
_WITHOUT_EFFECT: dict[tuple[str, str], tuple[str, ...]] = {
    ("alum_projection", "normalize"): ("alum_epsilon",),
    ("alum_ascent", "label"): (
        *("alum_inner_divergence", "alum_detach_targets", "alum_detach_embeddings", "alum_head_chunk_rows"),
        "alum_alpha",
    ),
}
"""{(option, value): options that it makes ineffective}; format 1 stored any value of those, which is now refused"""


@cache
def options_by_name() -> dict[str, Option]:
    """Every option of a run."""
    return {option.name: option for option in options_of(RunConfig)}


def upgraded(run: Mapping[str, Any], *, version: int) -> dict[str, Any]:
    """The stored options {name: JSON value} of any format as today's options, with the values that the run actually
    used.

    Names that no longer exist are left out; `unknown_names` lists them.
    """
    options = options_by_name()
    known = {name: value for name, value in run.items() if name in options}
    absent = {name: option.default for name, option in options.items() if name not in known}
    defaults = {name: plain(value) for name, value in absent.items() if value is not MISSING}
    sizes = asdict(ModelConfig(**{field.name: run[field.name] for field in fields(ModelConfig) if field.name in run}))
    defaults |= {name: value for name, value in sizes.items() if name in absent}  # follows from other options
    if version > 1:
        return {**defaults, **known}
    result = {**defaults, **{name: value for name, value in _BEFORE.items() if name in defaults}, **known}
    for (name, value), idle in _WITHOUT_EFFECT.items():
        for other in idle if result[name] == value else ():
            # alpha 0 switches the branch off, whatever the ascent
            if other != "alum_alpha" or result[other] > 0:
                result[other] = plain(options[other].default)
    return result


def unknown_names(run: Mapping[str, Any]) -> list[str]:
    """Stored options that this version does not have."""
    return sorted(set(run) - set(options_by_name()))


def kept_options(run: Mapping[str, Any], given: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """{name: typed value} that a resume takes from the stored, upgraded `run`; `given` {name: value} takes precedence.

    Raises: ValueError for a stored value that this version does not accept and that no flag replaces.
    """
    options, kept = options_by_name(), {}
    preset = ("num_layers", "hidden_size", "num_attention_heads") if given.get("model_size") is not None else ()
    replaced = {*given, *preset}
    for name, value in run.items():
        if KIND_OF[name] is Kind.INVOCATION or name in replaced:
            continue
        try:
            kept[name] = options[name].convert(value)
        except ValueError as error:
            raise ValueError(
                f"{source} was trained with {options[name].flag} {value}, which this version does not have (it "
                f"{error}). Give {options[name].flag} to continue with another value."
            ) from None
    return kept


def differences(run: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (stored, now)} of the options that belong to the run and differ, except the corpus."""
    owned = (name for name in options_by_name() if KIND_OF[name] not in (Kind.INVOCATION, Kind.CORPUS))
    return {name: (run[name], now[name]) for name in owned if _meaning(name, run) != _meaning(name, now)}


def _meaning(name: str, run: Mapping[str, Any]) -> Any:
    """The value, or its canonical form if two spellings mean the same."""
    if name in ("objective", "split"):
        data = DataConfig(data_path=("x",), objective=run["objective"], split=run["split"])
        if name == "objective":
            return data.objective_for(run["model_type"])
        return [round(share, 12) for share in data.split_shares]
    return run[name]
