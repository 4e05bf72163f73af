"""What diverges between the clean and the adversarial pass, by kind of task.

    classification   KL of the class distributions                               [B, C] one row per example
    regression       squared difference of the predictions                       [B, targets] one row per example
    spans            KL of the start and of the end positions, pads excluded     2 x [B, S] two rows per example
    choice           KL over the candidates                                      [B, choices] one row per example
    tags             KL of each labelled token's tags                            [B, S, C] one row per labelled token

The outer loss is a mean over the rows of the batch, like the label losses; the ascent climbs each example's own mean
(`inner_reduction` sample). The KL comes from megatron_alum.ops (fused where built). A regression counts both
directions, (a - b)^2 + (b - a)^2, whenever the KLs do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from megatron_alum import ops
from megatron_alum.alum import RowDivergence, Samples

Kind = Literal["classification", "regression", "spans", "choice", "tags"]
PAD_LOGIT = -1e4  # exp underflows to 0 beside any real logit, and the difference of two stays finite
IGNORED_LABEL = -100
SEVERAL_LABELS = (
    "`model` must have one label per example, but its problem_type is multi_label_classification instead, "
    "for which there is no divergence here. Use method none or freelb."
)


def kind_of(model: nn.Module) -> Kind:
    """The kind of task a Hugging Face head solves, by its class and number of labels.

    Raises: ValueError for another head, and for multi-label heads.
    """
    name = type(model).__name__
    if name.endswith("ForQuestionAnswering"):
        return "spans"
    if name.endswith("ForTokenClassification"):
        return "tags"
    if name.endswith("ForMultipleChoice"):
        return "choice"
    if name.endswith("ForSequenceClassification"):
        config: Any = model.config
        if config.problem_type == "multi_label_classification":
            raise ValueError(SEVERAL_LABELS)
        return "regression" if config.num_labels == 1 or config.problem_type == "regression" else "classification"
    raise ValueError(
        "`model` must end in ForSequenceClassification, ForQuestionAnswering, ForTokenClassification or "
        f"ForMultipleChoice, but is {name} instead. Pass `kind`."
    )


def comparable(outputs: Any, kind: Kind, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The part of a model's outputs that is compared; `mask` bool [B, S], False at pads.

    Outputs are a mapping with `logits` (or `start_logits` and `end_logits`), or a tensor or tuple that begins with them
    after an optional loss.
    Raises: ValueError for others.
    """
    names = ("start_logits", "end_logits") if kind == "spans" else ("logits",)
    if isinstance(outputs, Mapping):
        found = [outputs[name] for name in names if name in outputs]
    else:
        found = [value for value in tensors_of(outputs) if value.dim() > 0][: len(names)]
    if len(found) < len(names):
        raise ValueError(
            f"`model` must return {' and '.join(names)}, in a dictionary or first in a tuple, but returns "
            f"{', '.join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__} instead."
        )
    if kind != "spans":
        logits: Tensor = found[0]
        return logits
    start, end = (logits.masked_fill(~mask, PAD_LOGIT) for logits in found)
    return start, end


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors of a model's outputs, in order."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    if isinstance(values, Tensor):
        return [values]
    return [value for value in values if isinstance(value, Tensor)] if isinstance(values, Iterable) else []


def samples_of(x: Tensor, clean: Tensor | tuple[Tensor, Tensor], kind: Kind, labels: Tensor | None) -> Samples:
    """The example to which every token of x [B or B * choices, S, H] and every row of `clean` belongs.

    `labels` [B, S] are needed for tags: tokens with -100 belong to none.
    """
    samples = Samples.batch_first(x, clean)
    if kind != "tags":
        return samples
    assert labels is not None
    (owner,) = samples.of_rows
    return replace(samples, of_rows=(torch.where(labels != IGNORED_LABEL, owner, samples.count),))


def row_divergence(kind: Kind) -> RowDivergence:
    """The divergence of two outputs of `kind`, row by row."""
    return squared_difference if kind == "regression" else kl_of_rows


def kl_of_rows(clean: Tensor, adversarial: Tensor, *, symmetric: bool, detach_targets: bool) -> Tensor:
    """KL of logits [..., C], float32 [...]."""
    divergence = ops.symmetric_kl if symmetric else ops.kl_divergence
    rows = divergence(clean.flatten(0, -2), adversarial.flatten(0, -2), detach_targets=detach_targets)
    return rows.view(clean.shape[:-1])


def squared_difference(clean: Tensor, adversarial: Tensor, *, symmetric: bool, detach_targets: bool) -> Tensor:
    """Mean squared difference of predictions [B, targets], [B]; symmetric counts it in both directions, so that
    detaching keeps the value."""
    work = torch.promote_types(clean.dtype, torch.float32)
    clean, adversarial = clean.to(work), adversarial.to(work)
    rows = (adversarial - (clean.detach() if detach_targets else clean)).square().mean(-1)
    if symmetric:
        rows = rows + (clean - (adversarial.detach() if detach_targets else adversarial)).square().mean(-1)
    return rows
