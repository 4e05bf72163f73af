"""The classes of a folder's head against those of a task: the same names in another order are put in the task's order.

Names are compared as people write them: case, blanks, dashes and underscores do not count, a task's synonyms do, and
LABEL_0, LABEL_1 or 0, 1 name nothing but their place. Whoever trains gets a fresh head where the names differ; whoever
evaluates is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from megatron_alum.finetune.methods.divergence import tensors_of
from megatron_alum.finetune.methods.embeddings import probe

PLACE = re.compile(r"(?:label_?)?(\d+)")
ALIASES = {"non_entailment": "not_entailment", "entails": "entailment", "contradicts": "contradiction"}


def class_names(config: Any) -> list[str]:
    """The names of a configuration's classes, in the order of their ids."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def order_of(
    found: Sequence[str], wanted: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> list[int] | None:
    """The id in `found` of each class in `wanted`; None where the names cannot be matched one to one."""
    if len(found) != len(wanted):
        return None
    known = {_spelling(name): _spelling(other) for name, other in (synonyms or {}).items()}
    left, right = ([_canonical(name, known) for name in names] for names in (found, wanted))
    if sorted(left) == sorted(right) and len(set(left)) == len(left):
        return [left.index(name) for name in right]
    places = [PLACE.fullmatch(name) for name in (_spelling(name) for name in found)]
    if all(match is not None and int(match[1]) == index for index, match in enumerate(places)):
        return list(range(len(found)))
    return None


def _spelling(name: str) -> str:
    """Lower case, with one underscore in the place of blanks and punctuation; a leading minus is a sign."""
    text = name.strip().lower()
    sign = "-" if re.match(r"-\d", text) else ""
    return sign + re.sub(r"[\W_]+", "_", text).strip("_")


def _canonical(name: str, synonyms: Mapping[str, str]) -> str:
    text = _spelling(name)
    return synonyms.get(text, ALIASES.get(text, text))


def reorder_classes(model: PreTrainedModel, order: Sequence[int], names: Sequence[str]) -> None:
    """Put the rows of the classifier in the order of `names`; class i becomes what class order[i] was.

    Raises: ValueError for a head whose logits do not follow.
    """
    config: Any = model.config
    if list(order) != list(range(len(order))):
        model.eval()
        with torch.no_grad():
            inputs = probe(model)
            before = _logits(model, inputs, len(order))
            classifier = _classifier(model, len(order))
            if classifier is not None:
                for tensor in filter(lambda value: value is not None, (classifier.weight, classifier.bias)):
                    tensor.copy_(tensor[list(order)])
            after = _logits(model, inputs, len(order))
        if not torch.allclose(after, before[..., list(order)], rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"--model must have its classes in the order {', '.join(names)}, but has "
                f"{', '.join(class_names(config))}, and its {type(model).__name__} does not let them be reordered."
            )
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}


def _classifier(model: PreTrainedModel, count: int) -> nn.Linear | None:
    """The last linear layer outside of the encoder that puts out `count` values."""
    of_encoder = set(model.base_model.modules())
    layers = [
        m for m in model.modules() if isinstance(m, nn.Linear) and m not in of_encoder and m.out_features == count
    ]
    return layers[-1] if layers else None


def _logits(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
    return next(value for value in tensors_of(model(**inputs)) if value.shape[-1] == count)
