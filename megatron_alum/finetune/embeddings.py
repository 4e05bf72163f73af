"""Run any Hugging Face encoder from (perturbed) embeddings instead of token ids.

Two levels, as in `AlumConfig.perturb`: `word` hands `inputs_embeds` to the model, with the position ids the model
would have derived from the token ids (RoBERTa counts them from the pads, which it can no longer see); `encoder_input`
replaces the output of the model's embedding module. Both give the clean logits bit for bit at delta = 0 without
dropout: every model is tried on a small batch with pads before it is used, and refused if its two passes differ.
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
PROBE_LENGTHS = (8, 5)  # tokens of the two sequences that a model is tried on; the second is padded
# The two passes do the same operations; a wrong position moves even small random networks by 3e-3.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


def without_labels(inputs: Inputs) -> dict[str, Any]:
    """The inputs that describe the text alone."""
    return {name: value for name, value in inputs.items() if name not in LABEL_NAMES}


class EmbeddingSplit:
    """`embed` and `forward` of one unwrapped model at one level.

    Raises: ValueError for a model without `inputs_embeds` (word) or without an embedding module (encoder_input), or
    whose outputs from embeddings are not those from token ids.
    """

    def __init__(self, model: nn.Module, level: str) -> None:
        self.model, self.level = model, level
        own = without_adapters(_plain(model))
        self.accepted = set(inspect.signature(own.forward).parameters)
        if level == "word" and "inputs_embeds" not in self.accepted:
            raise ValueError(
                f"`model` must take inputs_embeds to perturb word embeddings, but {type(own).__name__} does not."
            )
        if level == "encoder_input" and embedding_module(_plain(model)) is None:
            raise ValueError(
                "`model` must have an `embeddings` module to perturb the encoder's input, but "
                f"{type(own).__name__} has none. Use --alum-perturb word."
            )
        self.padding_idx: int | None = None
        self._try_out()

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
        if self.padding_idx is not None and "position_ids" not in rest:
            rest["position_ids"] = positions_after_pad(token_ids, self.padding_idx)
        return {**rest, "inputs_embeds": embeddings.view(*token_ids.shape, embeddings.shape[-1])}

    def _try_out(self) -> None:
        """Find how positions are counted: from the pads if the embedding module knows their id, or by the model itself.

        Raises: ValueError when neither gives the outputs of the token ids.
        """
        plain = _plain(self.model)
        known = getattr(embedding_module(plain), "padding_idx", None)
        candidates = [known] if self.level == "word" and "position_ids" in self.accepted and known is not None else []
        reason = "gives others"
        try:
            with _evaluation(plain), torch.no_grad():
                inputs = probe(plain)
                expected = _tensors(plain(**inputs))
                for self.padding_idx in (*candidates, None):
                    found = _tensors(self.forward(self.embed(inputs), inputs))
                    if all(torch.allclose(a, b, RELATIVE, ABSOLUTE) for a, b in zip(expected, found, strict=True)):
                        return
        except Exception as error:  # whatever a model's code raises when it misses its token ids
            reason = f"fails ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        other = "encoder_input" if self.level == "word" else "word"
        raise ValueError(
            f"`model` must give the same outputs from {self.level} embeddings as from token ids, "
            f"but {type(plain).__name__} {reason}. Try --alum-perturb {other}, or another encoder."
        )


def probe(model: Any) -> dict[str, Tensor]:
    """Token ids and mask of two ordinary sequences, the second padded on the right; as two choices where asked for."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    special = [getattr(model.config, name, None) for name in names]
    pad, length = special[0] or 0, max(PROBE_LENGTHS)
    count = len(model.get_input_embeddings().weight)
    ordinary = [token for token in range(1, min(count, 100)) if token not in special and token != pad]
    ids = torch.tensor([[ordinary[i % len(ordinary)] for i in range(length)] for _ in PROBE_LENGTHS])
    mask = torch.arange(length) < torch.tensor(PROBE_LENGTHS)[:, None]
    inputs = {"input_ids": ids.where(mask, pad), "attention_mask": mask.long()}
    if type(without_adapters(model)).__name__.endswith("ForMultipleChoice"):
        inputs = {name: value[None] for name, value in inputs.items()}
    return {name: value.to(model.device) for name, value in inputs.items()}


def positions_after_pad(token_ids: Tensor, padding_idx: int) -> Tensor:
    """Position ids, shape of `token_ids`, as RoBERTa and its relatives count them: pads stay at padding_idx."""
    real = token_ids.ne(padding_idx).long()
    return real.cumsum(-1) * real + padding_idx


def perturbable(inputs: Inputs) -> Tensor:
    """bool [B, S] (choices flattened), False at pads."""
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones_like(inputs["input_ids"])
    return attention_mask.flatten(0, -2).bool()


def embedding_module(model: nn.Module) -> Any | None:
    """The base model's module that sums word, position and type embeddings, or None."""
    own = without_adapters(model)
    base = own.base_model if isinstance(own, PreTrainedModel) else own
    return getattr(base, "embeddings", None)


def without_adapters(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model, whose adapters sit in its layers; any other as it is."""
    inside: Any = model
    return inside.get_base_model() if hasattr(inside, "get_base_model") else inside


def _plain(model: nn.Module) -> nn.Module:
    """The module under torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


def _word_embeddings(model: nn.Module) -> nn.Module:
    words: nn.Module = without_adapters(model).get_input_embeddings()
    return words


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a model's outputs, in order."""
    return [value for value in outputs.to_tuple() if isinstance(value, Tensor)]


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode in the body: no dropout, no random number drawn."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _replaced_output(module: Any, output: Tensor) -> Iterator[None]:
    """`module` returns `output`, whatever it is called with, in the body."""
    handle = module.register_forward_hook(lambda _module, _inputs, _output: output)
    try:
        yield
    finally:
        handle.remove()
