"""What diverges between the clean and the adversarial pass, by kind of task.

    classification   symmetric KL of the class distributions                                     [B, C]
    regression       squared difference of the predictions                                       [B, targets]
    spans            symmetric KL of the start and of the end positions, pads excluded           2 x [B, S]
    choice           symmetric KL over the candidates                                            [B, choices]
    tags             symmetric KL of each labelled token's tags, mean over the labelled tokens   [B, S, C]

Rows are reduced by a mean, as the labels' losses are. The KL comes from megatron_alum.ops (fused where built). A
regression with `detach_targets` counts both directions, (a - b.detach())^2 + (b - a.detach())^2, as the KLs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from megatron_alum import ops
from megatron_alum.alum import Kernels

Kind = Literal["classification", "regression", "spans", "choice", "tags"]
KINDS: tuple[Kind, ...] = ("classification", "regression", "spans", "choice", "tags")
PAD_LOGIT = -1e4  # exp underflows to 0 beside any real logit, and the difference of two stays finite
IGNORED_LABEL = -100
SEVERAL_LABELS = (
    "`model` must have one label an example, but its problem_type is multi_label_classification instead, "
    "which no divergence here compares. Use method none or freelb."
)


def kind_of(model: nn.Module) -> Kind:
    """The kind of task a Hugging Face head solves, by its class and number of labels.

    Raises: ValueError for another head, and for one of several labels at once.
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


def comparable(outputs: Mapping[str, Any], kind: Kind, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The part of a model's outputs that is compared; `mask` bool [B, S], False at pads."""
    if kind != "spans":
        return outputs["logits"]
    blank = ~mask
    start, end = outputs["start_logits"], outputs["end_logits"]
    return start.masked_fill(blank, PAD_LOGIT), end.masked_fill(blank, PAD_LOGIT)


def task_kernels(kind: Kind, labels: Tensor | None = None) -> Kernels:
    """Kernels of one batch: perturbation and KL from megatron_alum.ops, reduced as `kind` says.

    `labels` [B, S] are needed for tags: rows with -100 do not count.
    """

    def divergence(clean: Any, adversarial: Any, *, symmetric: bool, detach_targets: bool) -> Tensor:
        if kind == "regression":
            return _squared_error(clean, adversarial, symmetric, detach_targets)
        pairs = zip(clean, adversarial, strict=True) if kind == "spans" else [(clean, adversarial)]
        counted = None if labels is None else labels.flatten() != IGNORED_LABEL
        return torch.stack([_mean_kl(a, b, counted, symmetric, detach_targets) for a, b in pairs]).sum()

    return Kernels(perturb=ops.perturb_embeddings, divergence=divergence, agree=lambda finite: finite)


def _mean_kl(clean: Tensor, adversarial: Tensor, counted: Tensor | None, symmetric: bool, detach: bool) -> Tensor:
    """Mean KL over the rows of logits [..., C], or over the `counted` ones."""
    divergence = ops.symmetric_kl if symmetric else ops.kl_divergence
    rows = divergence(clean.flatten(0, -2), adversarial.flatten(0, -2), detach_targets=detach)
    if counted is None:
        return rows.mean()
    return torch.where(counted, rows, torch.zeros_like(rows)).sum() / counted.sum().clamp(min=1)


def _squared_error(clean: Tensor, adversarial: Tensor, symmetric: bool, detach: bool) -> Tensor:
    """Mean squared difference; symmetric counts it in both directions, so that detaching keeps the value."""
    work = torch.float64 if clean.dtype == torch.float64 else torch.float32
    clean, adversarial = clean.to(work).flatten(), adversarial.to(work).flatten()
    target_a = clean.detach() if detach else clean
    loss = (adversarial - target_a).square().mean()
    if symmetric:
        target_b = adversarial.detach() if detach else adversarial
        loss = loss + (clean - target_b).square().mean()
    return loss
