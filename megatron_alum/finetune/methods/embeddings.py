"""Run any Hugging Face encoder from (perturbed) embeddings or hidden states instead of token ids.

Three levels, as in `AlumConfig.level`: `word` hands `inputs_embeds` to the model, with the position ids the model would
have derived from the token ids (RoBERTa counts them from the pads, which it can no longer see), or, where a model does
not take them, replaces the output of its word table; `encoder_input` replaces the output of the model's embedding
module; a number L0 that of its layer L0, without running the layers below again. All give the clean logits bit for bit
at delta = 0 without dropout: every model is tried on a small batch with pads before it is used, and refused if its two
passes differ. `WholeModel` is for methods that never leave x.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron_alum.alum import DropoutState
from megatron_alum.finetune.methods.divergence import Kind, tensors_of
from megatron_alum.finetune.methods.entrance import (
    Entrance,
    Noted,
    embedding_module,
    layer_list,
    without_adapters,
    word_embeddings,
)

Inputs = Mapping[str, Any]
LABEL_NAMES = {"labels", "start_positions", "end_positions", "num_items_in_batch"}
PROBE_LENGTHS = (8, 5)  # tokens of the two sequences that a model is tried on; the second is padded
# The two passes do the same operations; a wrong position moves even small random networks by 3e-3.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


def without_labels(inputs: Inputs) -> dict[str, Any]:
    """The inputs that describe the text alone."""
    return {name: value for name, value in inputs.items() if name not in LABEL_NAMES}


class _WithTokenIds(dict[str, Any]):
    """Inputs of a pass from embeddings that still tell their token ids to a loss which looks at them.

    `model(**inputs)` hands on what the dictionary holds, which the token ids are not part of.
    """

    def __init__(self, inputs: Inputs, token_ids: Tensor) -> None:
        super().__init__(inputs)
        self._token_ids = token_ids

    def __missing__(self, name: str) -> Tensor:
        if name == "input_ids":
            return self._token_ids
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dictionary that holds the token ids."""
        return self[name] if name in self or name == "input_ids" else default


@dataclass
class CleanPass:
    """One pass of the model that others follow from the same x."""

    inputs: dict[str, Any]
    """what the model is to be called with, labels included"""
    noted: Noted
    """x, and the generators' state after it"""

    @property
    def x(self) -> Tensor:
        """[B, S, H] with its graph ([B * choices, S, H] for multiple choice), once the model has run."""
        return self.noted.x


class EmbeddingSplit:
    """`clean_pass` and `forward` of one unwrapped model at one level.

    Raises: ValueError for a model without a word table (word), an embedding module (encoder_input) or a list of layers
    above the level's, or whose outputs from x are not those from token ids. `at_table` enters words in the place of
    the table alone, whatever the model is called with in the body of `entered`.
    """

    def __init__(self, model: nn.Module, level: str | int, kind: Kind | None = None, *, at_table: bool = False) -> None:
        self.model, self.level, self.kind = model, level, kind
        self._entrance: tuple[nn.Module, Entrance] | None = None
        self.accepted = _accepted(without_adapters(_plain(model)))
        takes_words = self.accepted is None or "inputs_embeds" in self.accepted
        self.by_argument = level == "word" and takes_words and not at_table
        self.entrance()  # an error before anything runs
        self.padding_idx: int | None = None
        self._try_out()

    def entrance(self) -> Entrance:
        """Where x is put out in the model of this moment (a second one after `model_init`).

        Raises: ValueError for a model that has no such place.
        """
        if self._entrance is None or self._entrance[0] is not self.model:
            self._entrance = self.model, _entrance_of(_plain(self.model), self.level)
        return self._entrance[1]

    def embed(self, inputs: Inputs) -> Tensor:
        """Word embeddings [B, S, H] with their graph; multiple choice gives [B * choices, S, H]."""
        assert self.level == "word"
        words: Tensor = self.entrance().source(inputs["input_ids"])
        return words.flatten(0, -3)

    @contextmanager
    def clean_pass(self, inputs: Inputs, dropout: DropoutState | None = None) -> Iterator[CleanPass]:
        """In the body the caller runs the model on `inputs` of what this yields, whose `x` is there afterwards.

        Word embeddings are looked up once for all passes: the table gets one gradient, not two. With `dropout` its
        state after x is noted, for passes that draw the same masks.
        Raises: ValueError when x is no hidden state for each token.
        """
        if self.by_argument:
            state = dropout.snapshot() if dropout is not None else None
            words = Noted(self.embed(inputs), 1, state)
            yield CleanPass(self.from_words(words.x, inputs), words)
            return
        with self.entrance().noted(dropout) as noted:
            yield CleanPass(dict(inputs), noted)
        expected = inputs["input_ids"].flatten(0, -2).shape
        if noted.num_calls != 1 or noted.x.shape[:-1] != expected:
            shape = list(noted.x.shape) if noted.num_calls else "nothing"
            raise ValueError(
                f"`model` must put out {_name(self.level)} once, one for each of {list(expected)} tokens, but "
                f"{type(_plain(self.model)).__name__} does so {noted.num_calls} times with {shape} instead."
            )

    @contextmanager
    def entered(
        self, x: Tensor, inputs: Inputs, noted: Noted | None = None, dropout: DropoutState | None = None
    ) -> Iterator[dict[str, Any]]:
        """In the body a model that is called with what this yields starts from `x`.

        `noted` is the clean pass's, of which words need none; `dropout` draws the masks after x again.
        """
        if self.by_argument:
            yield self.from_words(x, inputs)
            return
        with self.entrance().replaced(x, noted or Noted(x, 1), dropout):
            yield dict(inputs)

    def forward(
        self, x: Tensor, inputs: Inputs, noted: Noted | None = None, dropout: DropoutState | None = None
    ) -> Any:
        """The model's outputs, without labels, from `x`; see `entered`."""
        with self.entered(x, without_labels(inputs), noted, dropout) as given:
            return self.model(**given)

    def from_words(self, embeddings: Tensor, inputs: Inputs) -> dict[str, Any]:
        """The inputs with `inputs_embeds` (and position ids where the model takes them) in place of the token ids."""
        token_ids = inputs["input_ids"]
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        if self.padding_idx is not None and "position_ids" not in rest:
            rest["position_ids"] = positions_after_pad(token_ids, self.padding_idx)
        rest["inputs_embeds"] = embeddings.view(*token_ids.shape, embeddings.shape[-1])
        return _WithTokenIds(rest, token_ids)

    def _try_out(self) -> None:
        """Find how x is handed over and how positions are counted, by trying: words as an argument, with positions
        from the pads if the embedding module knows their id, or by the model itself; then in the place of the table.

        Raises: ValueError when no way gives the outputs of the token ids, or the outputs do not come from x.
        """
        plain = _plain(self.model)
        known = getattr(embedding_module(plain), "padding_idx", None)
        takes_positions = self.accepted is None or "position_ids" in self.accepted
        ways: list[tuple[bool, int | None]] = [(False, None)]
        if self.by_argument:
            ways = [*([(True, known)] if takes_positions and known is not None else []), (True, None), *ways]
        reasons = []
        for self.by_argument, self.padding_idx in ways:
            reason = self._failure(plain)
            if reason is None:
                return
            reasons.append(reason)
        other = "encoder_input" if self.level == "word" else "word"
        raise ValueError(
            f"`model` must give the same outputs from {_name(self.level)} as from token ids, "
            f"but {type(plain).__name__} {reasons[0]}. Try --alum-perturb {other}, or another encoder."
        )

    def _failure(self, plain: nn.Module) -> str | None:
        """What is wrong with the passes from x as they are set up now; None if nothing is."""
        try:
            with _evaluation(plain), torch.no_grad():
                inputs = probe(plain, self.kind)
                expected = tensors_of(plain(**inputs))
                with self.clean_pass(inputs) as clean:
                    found = tensors_of(self.model(**clean.inputs))
                again = tensors_of(self.forward(clean.x, inputs, clean.noted))
                if not (_close(expected, found) and _close(expected, again)):
                    return "gives others"
                if self.level == "word" and not torch.equal(self.embed(inputs), clean.x):
                    return "puts out others"
                # Another x, which no normalisation takes for the same: the channels in reverse.
                other = tensors_of(self.forward(clean.x.flip(-1), inputs, clean.noted))
                return "does not compute them from there" if _close(expected, other) else None
        except Exception as error:  # whatever a model's code raises when it misses its token ids
            return f"fails ({type(error).__name__}: {' '.join(str(error).split())[:160]})"


class WholeModel:
    """In the place of `EmbeddingSplit` for methods that never move x: every pass runs the model from its token ids."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @contextmanager
    def clean_pass(self, inputs: Inputs, dropout: DropoutState | None = None) -> Iterator[CleanPass]:
        """The inputs as they are; x [B, S, 1] is the token ids, of which only the shape is ever used."""
        ids = inputs["input_ids"].flatten(0, -2)
        yield CleanPass(dict(inputs), Noted(ids[..., None].float(), 1))

    def forward(
        self, x: Tensor, inputs: Inputs, noted: Noted | None = None, dropout: DropoutState | None = None
    ) -> Any:
        """The model's outputs, without labels."""
        return self.model(**without_labels(inputs))


def _entrance_of(model: nn.Module, level: str | int) -> Entrance:
    """The place of x in an unwrapped model; see `EmbeddingSplit.entrance`."""
    own = type(without_adapters(model)).__name__
    if level == "word":
        words = word_embeddings(model)
        if words is None:
            raise ValueError(
                f"`model` must have one table of word embeddings to perturb them, but {own} has none or several. "
                "Use --alum-perturb encoder_input."
            )
        return Entrance(words)
    if isinstance(level, str):
        embeddings = embedding_module(model)
        if embeddings is None:
            raise ValueError(
                f"`model` must have an `embeddings` module to perturb the encoder's input, but {own} has none. "
                "Use --alum-perturb word."
            )
        return Entrance(embeddings)
    layers = layer_list(model)
    if layers is None:
        raise ValueError(
            f"`model` must have one list of its layers for --alum-perturb layer, but {own} has none or several. "
            "Use --alum-perturb word or encoder_input."
        )
    if not 1 <= level < len(layers):
        raise ValueError(
            f"--alum-perturb-layer must be at least 1 and below the number of layers ({len(layers)}), "
            f"but is {level} instead: the ascent needs a layer above it."
        )
    return Entrance(layers[level - 1], list(layers)[: level - 1])


def _name(level: str | int) -> str:
    """What x is, in a sentence."""
    return f"{level} embeddings" if isinstance(level, str) else f"the hidden state after layer {level}"


def probe(model: nn.Module, kind: Kind | None = None) -> dict[str, Tensor]:
    """Token ids and mask of two ordinary sequences, the second padded on the right; as two choices where asked for."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    special = [getattr(getattr(model, "config", None), name, None) for name in names]
    pad, length = special[0] or 0, max(PROBE_LENGTHS)
    words = word_embeddings(model)
    count = 100 if words is None else len(words.weight)
    ordinary = [token for token in range(1, min(count, 100)) if token not in special and token != pad]
    ids = torch.tensor([[ordinary[i % len(ordinary)] for i in range(length)] for _ in PROBE_LENGTHS])
    mask = torch.arange(length) < torch.tensor(PROBE_LENGTHS)[:, None]
    inputs = {"input_ids": ids.where(mask, pad), "attention_mask": mask.long()}
    own = without_adapters(model)
    if kind == "choice" or type(own).__name__.endswith("ForMultipleChoice"):
        inputs = {name: value[None] for name, value in inputs.items()}
    accepted, device = _accepted(own), next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items() if accepted is None or name in accepted}


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


def _plain(model: nn.Module) -> nn.Module:
    """The module under torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


def _accepted(model: nn.Module) -> set[str] | None:
    """Names of the arguments of a model's forward pass; None where it takes any."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_any else set(parameters)


def _close(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether two passes give the same outputs, but for rounding."""
    return all(torch.allclose(a, b, RELATIVE, ABSOLUTE) for a, b in zip(expected, found, strict=True))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """The model is in evaluation mode in the body: no dropout, no random number drawn."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
