"""The README.md of an exported model: what was trained on what, how, and what the metrics say.

Everything comes from three records of the run: the configuration stored with the checkpoint, the manifests of its
shards, and metrics.jsonl up to the exported iteration. A record that is absent gives a sentence that says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

AVERAGED_ROWS = 20
"""Logged iterations averaged for the first and last values of the table: single batches are noisy."""
RECIPE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "model",
        (
            "model_type",
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "ffn_hidden_size",
            "max_position_embeddings",
            "hidden_dropout",
            "attention_dropout",
        ),
    ),
    ("batches", ("train_iters", "global_batch_size", "seq_length", "seed")),
    ("optimizer", ("lr", "min_lr", "lr_warmup_fraction", "weight_decay", "adam_beta1", "adam_beta2", "clip_grad")),
    ("data", ("objective", "masking", "mask_rate_start", "mask_rate_end", "mask_rate_steps", "init_from")),
    (
        "ALUM",
        (
            "alum_start_fraction",
            "alum_alpha",
            "alum_epsilon",
            "alum_step_size",
            "alum_noise_std",
            "alum_num_ascent_steps",
            "alum_projection",
            "alum_perturb",
            "alum_nsp",
            "alum_batch_fraction",
        ),
    ),
)
"""Section and the flags it shows, where the run's configuration has them."""
PERTURBATION = (
    ("effective_perturbation", "mean |cast(x + delta) - cast(x)| / mean |delta|: 1 means that no digit was lost"),
    ("ascent_ratio", "|eta g| / |delta|: size of the gradient step against the random start"),
    ("kl_gain", "KL after the ascent less KL at the random start"),
    ("alum_kl", "symmetric KL a masked token, without alpha"),
)


@dataclass(frozen=True)
class CardFacts:
    """What the card is written from."""

    name: str
    """Title: the name of the exported folder."""
    class_name: str
    """transformers class of the export."""
    iteration: int | None = None
    """Iteration of the checkpoint; None for a folder that no training run wrote."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Flat configuration of the run, option name to value."""
    manifests: Sequence[Mapping[str, Any]] = ()
    """Manifests of the shards, one a corpus."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows of metrics.jsonl up to `iteration`."""


def model_card(facts: CardFacts) -> str:
    """The text of README.md, Markdown with the YAML header that model hubs read."""
    sections = [
        _header(facts),
        _usage(facts),
        _recipe(facts.run),
        _data(facts.manifests),
        _metrics(facts.metrics),
        _perturbation(facts.metrics),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(facts: CardFacts) -> str:
    trained = f" at iteration {facts.iteration}" if facts.iteration else ""
    pipeline = "feature-extraction" if facts.class_name.endswith("Model") else "fill-mask"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {pipeline}\ntags:\n- alum\n- adversarial-pretraining\n---\n\n"
        f"# {facts.name}\n\n"
        f"A `{facts.class_name}` exported by megatron_alum from a megatron-core checkpoint{trained}. ALUM adds to\n"
        "masked language modelling the divergence between the predictions on the input and on its adversarially\n"
        "perturbed embeddings (Liu et al. 2020, arXiv 2004.08994)."
    )


def _usage(facts: CardFacts) -> str:
    return (
        "## Use\n\n```python\nfrom transformers import AutoTokenizer, "
        f'{facts.class_name}\n\ntokenizer = AutoTokenizer.from_pretrained("{facts.name}")\n'
        f'model = {facts.class_name}.from_pretrained("{facts.name}")\n```'
    )


def _recipe(run: Mapping[str, Any]) -> str:
    if not run:
        return "## Recipe\n\nThe checkpoint stores no configuration of a training run."
    lines = ["## Recipe", "", "| | |", "|---|---|"]
    for title, names in RECIPE:
        shown = [f"{name} {_value(run[name])}" for name in names if run.get(name) is not None]
        if shown:
            lines.append(f"| {title} | {', '.join(shown)} |")
    return "\n".join(lines)


def _data(manifests: Sequence[Mapping[str, Any]]) -> str:
    if not manifests:
        return "## Data\n\nThe manifest of the training data was not found beside the checkpoint."
    lines = ["## Data", ""]
    for manifest in manifests:
        facts = [f"{name} {_value(value)}" for name, value in sorted(manifest.items()) if _is_plain(value)]
        lines.append(f"- {', '.join(facts)}")
    return "\n".join(lines)


def _metrics(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "## Metrics\n\nNo metrics.jsonl was found beside the checkpoint."
    count = min(AVERAGED_ROWS, len(rows))
    last = rows[-1].get("iteration")
    lines = [
        "## Metrics",
        "",
        f"Training metrics to iteration {last}, means of the first and the last {count} logged iterations.",
        "",
        "| | first | last |",
        "|---|---|---|",
    ]
    for name in ("lm_loss", "nsp_loss", "loss", "mask_rate"):
        first, final = mean_of(rows[:count], name), mean_of(rows[-count:], name)
        if first is not None or final is not None:
            lines.append(f"| {name} | {_value(first)} | {_value(final)} |")
    skipped = rows[-1].get("skipped")
    if skipped is not None:
        lines += ["", f"Iterations skipped for non-finite values: {skipped}."]
    return "\n".join(lines)


def _perturbation(rows: Sequence[Mapping[str, Any]]) -> str:
    adversarial = [row for row in rows if row.get("phase") == "alum"]
    if not adversarial:
        return "## Perturbation\n\nNo iteration of the exported run was adversarial." if rows else ""
    count = len(adversarial)
    lines = [
        "## Perturbation",
        "",
        f"Means over the {count} logged adversarial iterations.",
        "",
        "| | mean | |",
        "|---|---|---|",
    ]
    for name, meaning in PERTURBATION:
        mean = mean_of(adversarial, name)
        if mean is not None:
            lines.append(f"| {name} | {_value(mean)} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a metric over the rows that have it as a finite number; None when none has."""
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else None


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
