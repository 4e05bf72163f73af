"""Run any Hugging Face encoder from (perturbed) embeddings instead of token ids.

Two levels, as in `AlumConfig.perturb`: `word` hands `inputs_embeds` to the model, with the position ids the model
would have derived from the token ids (RoBERTa counts them from the pads, which it can no longer see); `encoder_input`
replaces the output of the model's embedding module. Both give the clean logits bit for bit at delta = 0 without
dropout.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Inputs = Mapping[str, Any]
LABEL_NAMES = {"labels", "start_positions", "end_positions", "num_items_in_batch"}


def without_labels(inputs: Inputs) -> dict[str, Any]:
    """The inputs that describe the text alone."""
    return {name: value for name, value in inputs.items() if name not in LABEL_NAMES}


class EmbeddingSplit:
    """`embed` and `forward` of one unwrapped model at one level.

    Raises: ValueError for a model without `inputs_embeds` (word) or without an embedding module (encoder_input).
    """

    def __init__(self, model: nn.Module, level: str) -> None:
        self.model, self.level = model, level
        self.accepted = set(inspect.signature(_plain(model).forward).parameters)
        if level == "word" and "inputs_embeds" not in self.accepted:
            raise ValueError(
                "`model` must take inputs_embeds to perturb word embeddings, "
                f"but {type(_plain(model)).__name__} does not."
            )
        if level == "encoder_input" and embedding_module(_plain(model)) is None:
            raise ValueError(
                "`model` must have an `embeddings` module to perturb the encoder's input, but "
                f"{type(_plain(model)).__name__} has none. Use --alum-perturb word."
            )

    def embed(self, inputs: Inputs) -> Tensor:
        """Embeddings [B, S, H] with their graph; multiple choice gives [B * choices, S, H]."""
        if self.level == "word":
            words = _word_embeddings(_plain(self.model))(inputs["input_ids"])
            return words.flatten(0, -3)
        module: Any = embedding_module(_plain(self.model))
        accepted = inspect.signature(module.forward).parameters
        names = [
            name for name in ("input_ids", "token_type_ids", "position_ids") if name in inputs and name in accepted
        ]
        return module(**{name: inputs[name].flatten(0, -2) for name in names})

    def forward(self, embeddings: Tensor, inputs: Inputs) -> Any:
        """The model's outputs, without labels, from embeddings as `embed` returns them."""
        if self.level == "encoder_input":
            with _replaced_output(embedding_module(_plain(self.model)), embeddings):
                return self.model(**without_labels(inputs))
        return self.model(**self.from_words(embeddings, without_labels(inputs)))

    def from_words(self, embeddings: Tensor, inputs: Inputs) -> dict[str, Any]:
        """The inputs with `inputs_embeds` (and position ids where the model takes them) in place of the token ids."""
        token_ids = inputs["input_ids"]
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        if "position_ids" in self.accepted and "position_ids" not in rest:
            rest["position_ids"] = position_ids(_plain(self.model), token_ids)
        return {**rest, "inputs_embeds": embeddings.view(*token_ids.shape, embeddings.shape[-1])}


def position_ids(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Position ids, shape of `token_ids`, as the model derives them from the tokens."""
    module: Any = embedding_module(model)
    flat = token_ids.flatten(0, -2)
    if hasattr(module, "create_position_ids_from_input_ids"):  # RoBERTa and its relatives: pads stay at padding_idx
        padding_idx = module.padding_idx
        real = flat.ne(padding_idx).long()
        positions = real.cumsum(1) * real + padding_idx
    else:
        positions = torch.arange(flat.shape[1], device=flat.device).expand(flat.shape)
    return positions.view(token_ids.shape)


def perturbable(inputs: Inputs) -> Tensor:
    """bool [B, S] (choices flattened), False at pads."""
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones_like(inputs["input_ids"])
    return attention_mask.flatten(0, -2).bool()


def embedding_module(model: nn.Module) -> Any | None:
    """The base model's module that sums word, position and type embeddings, or None."""
    base = model.base_model if isinstance(model, PreTrainedModel) else model
    return getattr(base, "embeddings", None)


def _plain(model: nn.Module) -> nn.Module:
    """The module under torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


def _word_embeddings(model: nn.Module) -> nn.Module:
    assert isinstance(model, PreTrainedModel)
    return model.get_input_embeddings()


@contextmanager
def _replaced_output(module: Any, output: Tensor) -> Iterator[None]:
    """`module` returns `output`, whatever it is called with, in the body."""
    handle = module.register_forward_hook(lambda _module, _inputs, _output: output)
    try:
        yield
    finally:
        handle.remove()
