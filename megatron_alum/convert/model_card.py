"""The README.md of an exported model: what was trained on what, how, what the metrics say, and what its limits are.

Facts come from three records of the run: the configuration stored with the checkpoint, the manifests of its shards, and
metrics.jsonl up to the exported iteration. A record that is absent gives a sentence that says so. Licence and languages
come from the person who exports, the evaluation from `megatron-alum report`; card_words.py has the sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_alum.convert.card_words import CardWish, corpus_sentences, recipe_sentences, training_command

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
EVALUATION = "## Evaluation"
PERTURBATION = (
    ("effective_perturbation", "mean |cast(x + delta) - cast(x)| / mean |delta|: 1 means that no digit was lost"),
    ("ascent_ratio", "length of the gradient step over that of the random start"),
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
    wish: CardWish = field(default_factory=CardWish)
    """What only the person who exports can know."""


def model_card(facts: CardFacts) -> str:
    """The text of README.md, Markdown with the YAML header that model hubs read."""
    sections = [
        _header(facts),
        _usage(facts),
        _recipe(facts),
        _data(facts.manifests),
        _metrics(facts.metrics),
        _perturbation(facts.metrics),
        f"{EVALUATION}\n\nNone was recorded. `megatron-alum report --model-card` puts the results of fine-tuning here.",
        _limits(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def with_evaluation(card: str, table: str) -> str:
    """The card with `table` (Markdown) as its evaluation, in place of what stood there or at the end."""
    before, found, rest = card.partition(EVALUATION)
    following = rest.find("\n## ")
    after = rest[following:] if found and following >= 0 else "\n"
    return f"{before.rstrip()}\n\n{EVALUATION}\n\n{table.strip()}\n{after}"


def _header(facts: CardFacts) -> str:
    pipeline = "feature-extraction" if facts.class_name.endswith("Model") else "fill-mask"
    languages = facts.wish.languages or _languages(facts.manifests)
    fields = [
        f"license: {facts.wish.license}",
        *(["language:", *(f"- {code}" for code in languages)] if languages else []),
    ]
    trained = f" after iteration {facts.iteration:,}" if facts.iteration else ""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {pipeline}\n" + "\n".join(fields) + "\n"
        f"tags:\n- alum\n- adversarial-pretraining\n---\n\n# {facts.name}\n\n"
        f"A text encoder, `{facts.class_name}`, exported by megatron_alum{trained}. It was made for fine-tuning on\n"
        "tasks of language understanding. ALUM ([Liu et al. 2020](https://arxiv.org/abs/2004.08994)) adds to masked\n"
        "language modelling a second aim: that predictions stay the same where the embeddings of the words are\n"
        "slightly moved, in the direction that changes them most."
    )


def _languages(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Language codes that the preprocessing was told."""
    codes = [str((manifest.get("settings") or {}).get("language", "auto")) for manifest in manifests]
    return sorted({code for code in codes if code != "auto"})


def _usage(facts: CardFacts) -> str:
    return (
        "## Use\n\n```python\nfrom transformers import AutoTokenizer, "
        f'{facts.class_name}\n\ntokenizer = AutoTokenizer.from_pretrained("{facts.name}")\n'
        f'model = {facts.class_name}.from_pretrained("{facts.name}")\n```'
    )


def _recipe(facts: CardFacts) -> str:
    run = facts.run
    lines = ["## Training", ""]
    if not run:
        lines.append("The checkpoint stores no configuration of a training run.")
    else:
        lines += [" ".join(recipe_sentences(run, facts.iteration)), "", "| | |", "|---|---|"]
    for title, names in RECIPE if run else ():
        shown = [f"{name} {_value(run[name])}" for name in names if run.get(name) is not None]
        if shown:
            lines.append(f"| {title} | {', '.join(shown)} |")
    commands = [training_command(run) if run else "", facts.wish.command]
    if any(commands):
        lines += ["", "Trained and exported by", "", "```bash", *(command for command in commands if command), "```"]
    return "\n".join(lines)


def _data(manifests: Sequence[Mapping[str, Any]]) -> str:
    if not manifests:
        return "## Data\n\nThe manifest of the training data was not found beside the checkpoint."
    sentences = [corpus_sentences(manifest) for manifest in manifests]
    return "\n".join(["## Data", "", *([f"- {one}" for one in sentences] if len(sentences) > 1 else sentences)])


def _limits(facts: CardFacts) -> str:
    longest = facts.run.get("max_position_embeddings") or facts.run.get("seq_length")
    cut = f" It reads at most {longest:,} tokens at a time." if longest else ""
    return (
        "## Limits\n\nThe model repeats what its texts hold, their errors and prejudices included; it knows nothing of "
        f"languages and fields that they lack, and it does not generate text.{cut} Training against small "
        "perturbations of embeddings is no protection against a person who sets out to deceive it. Before use in "
        "earnest, measure it on your own task and data."
    )


def _metrics(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "## Metrics\n\nNo metrics.jsonl was found beside the checkpoint."
    count = min(AVERAGED_ROWS, len(rows))
    last = rows[-1].get("iteration")
    lines = [
        "## Metrics",
        "",
        f"Training metrics to iteration {last:,}, means of the first and the last {count} logged iterations.",
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
        lines += ["", f"Iterations skipped for non-finite values: {skipped:,}."]
    return "\n".join(lines)


def _perturbation(rows: Sequence[Mapping[str, Any]]) -> str:
    adversarial = [row for row in rows if row.get("phase") == "alum"]
    if not adversarial:
        return "## Perturbation\n\nNo iteration of the exported run was adversarial." if rows else ""
    count = len(adversarial)
    lines = [
        "## Perturbation",
        "",
        f"Means over the {count:,} logged adversarial iterations.",
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
