"""The model card's sentences about recipe and data, and the facts that only the exporting user knows.

A sentence is left out if the record lacks its facts: runs of other versions and imports have fewer options.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from megatron_alum.config.fields import options_of
from megatron_alum.config.run import RunConfig
from megatron_alum.config.words import data_size

PROJECTIONS = {
    "clamp": "as in the paper, a gradient step clipped to the radius",
    "normalize": "as in the released code, scaled by the largest entry of each token",
    "normalized_gradient": "the textbook step, a normalised gradient clipped to the radius",
}
OBJECTIVES = {
    "nsp": "masked words and whether the second text follows the first",
    "sop": "masked words and the order of two texts",
    "none": "masked words",
}
NAMED_FILES = 3
"""Number of input files that the card names; the manifest lists more."""


@dataclass(frozen=True)
class CardWish:
    """Facts that no record of the run contains."""

    license: str = "unknown"
    """licence of the model, an identifier such as apache-2.0"""
    languages: tuple[str, ...] = ()
    """codes such as en; () for those of the preprocessing"""
    command: str = ""
    """the command line of the export"""


def training_command(run: Mapping[str, Any]) -> str:
    """A run's options that are not the defaults, as a command line, without the folders for saving and logging."""
    words = []
    for option in options_of(RunConfig):
        value = run.get(option.name)
        given = list(value) if isinstance(value, list | tuple) else [value]
        is_place = option.path[0] in ("checkpoint", "logging") and option.name != "init_from"
        if is_place or value is None or given == [option.default] or not given:
            continue
        words.append(shlex.join([option.flag, *(_as_word(one) for one in given)]))
    return " \\\n    ".join(["torchrun -m megatron_alum.pretrain", *words])


def _as_word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipe_sentences(run: Mapping[str, Any], iteration: int | None) -> Iterator[str]:
    """How it was trained, from the options of the run."""
    objective = run.get("objective")
    if objective == "auto":
        objective = "none" if run.get("model_type") == "roberta" else "nsp"
    if objective in OBJECTIVES:
        yield f"It learned to predict {OBJECTIVES[objective]}."
    iters, batch, length = (run.get(name) for name in ("train_iters", "global_batch_size", "seq_length"))
    if iters and batch:
        tokens = f" of at most {length:,} tokens" if length else ""
        planned = f"{iters:,} iterations" if iteration in (None, iters) else f"{iteration:,} of {iters:,} iterations"
        yield f"It was trained for {planned} with {batch:,} sequences{tokens} each."
    first, last = run.get("mask_rate_start"), run.get("mask_rate_end")
    if first is not None and last is not None:
        rose = f"rose from {100 * first:g} % to {100 * last:g} %" if first != last else f"was {100 * first:g} %"
        yield f"The share of masked tokens {rose}."
    yield from _adversarial(run)
    if run.get("init_from"):
        yield f"It started from the weights of {PurePath(str(run['init_from'])).name}."


def _adversarial(run: Mapping[str, Any]) -> Iterator[str]:
    start, alpha, steps = (run.get(f"alum_{name}") for name in ("start_fraction", "alpha", "num_ascent_steps"))
    if start is None or alpha is None:
        return
    if start >= 1 or alpha == 0:
        yield "No part of the training was adversarial."
        return
    since = "throughout" if start == 0 else f"for the last {100 * (1 - start):g} % of the iterations"
    yield f"It was trained adversarially {since}, with weight {alpha:g} on the divergence of the predictions."
    epsilon, step = run.get("alum_epsilon"), run.get("alum_step_size")
    if steps == 0:
        yield "The perturbation was random, without a step along the gradient: a control of ALUM."
    elif steps and epsilon is not None and step is not None:
        projection = str(run.get("alum_projection"))
        how = PROJECTIONS.get(projection, "")
        within = "" if projection == "normalize" else f" within the radius {epsilon:g}"
        count = "one step" if steps == 1 else f"{steps} steps"
        yield f"The perturbation took {count} of size {step:g}{within}" + (f": {how}." if how else ".")


def corpus_sentences(manifest: Mapping[str, Any]) -> str:
    """What a corpus contains and where it came from."""
    counted = [
        f"{manifest[f'num_{name}']:,} {name}"
        for name in ("documents", "sentences", "tokens")
        if f"num_{name}" in manifest
    ]
    size = f" ({data_size(manifest['text_bytes'])} of text)" if manifest.get("text_bytes") else ""
    parts = [f"{_listed(counted)}{size}." if counted else "A corpus whose manifest contains no counts."]
    inputs = manifest.get("inputs") or {}
    files = [PurePath(entry["path"]).name for entry in inputs.get("files", [])]
    if files:
        number = inputs.get("num_files", len(files))
        named = _listed(files[:NAMED_FILES])
        parts.append(f"Source: {named}." if number <= NAMED_FILES else f"Source: {number:,} files, among them {named}.")
    dropped = sum(entry.get("count", 0) for entry in (manifest.get("skipped") or {}).values())
    if dropped:
        parts.append(f"{dropped:,} records of the source were left out.")
    if manifest.get("made_by"):
        parts.append(f"Prepared by {manifest['made_by']}.")
    return " ".join(parts)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
