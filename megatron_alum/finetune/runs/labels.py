"""The classes of a folder's head compared with a task's: the same names in another order are put in the task's order.

Names are compared as people write them (class_names.py). Whoever trains gets a fresh head where they differ; whoever
evaluates is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from megatron_alum.finetune.benchmarks.class_names import class_names
from megatron_alum.finetune.methods.divergence import tensors_of
from megatron_alum.finetune.methods.embeddings import probe


def reorder_classes(model: PreTrainedModel, order: Sequence[int], names: Sequence[str]) -> None:
    """Put the rows of the classifier in the order of `names`; class i becomes what class order[i] was.

    Raises: ValueError for a head whose logits cannot be reordered in this way.
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
    """The last linear layer outside the encoder with `count` outputs."""
    of_encoder = set(model.base_model.modules())
    layers = [
        m for m in model.modules() if isinstance(m, nn.Linear) and m not in of_encoder and m.out_features == count
    ]
    return layers[-1] if layers else None


def _logits(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
    return next(value for value in tensors_of(model(**inputs)) if value.shape[-1] == count)
