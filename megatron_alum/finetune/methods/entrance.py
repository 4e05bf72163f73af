"""Enter a model in the middle: note what one of its modules puts out, and later put another tensor in that place.

    with entrance.noted() as noted:
        clean = model(**inputs)                     noted.x is the module's output, with its graph
    with entrance.replaced(x, noted):
        other = model(**inputs)                     the module returns x, and what lies below it does not run

The module is the embedding module, or one layer of a stack; `below` are the layers under it, which hand on what they
get. Nothing of the model is changed outside the bodies. A replaced output keeps the form of the noted one, a tensor or
a tuple that begins with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from megatron_alum.alum import DropoutState


@dataclass
class Noted:
    """What a module put out during a pass."""

    output: Any = None
    """as the module returned it"""
    num_calls: int = 0
    """how often it ran"""
    dropout_state: Any | None = None
    """the generators right after it ran, None where nobody asked"""

    @property
    def x(self) -> Tensor:
        """The hidden state in it, [B, S, H]."""
        hidden: Tensor = self.output if isinstance(self.output, Tensor) else self.output[0]
        return hidden

    def in_form(self, x: Tensor) -> Any:
        """`x` in the place of the hidden state."""
        return x if isinstance(self.output, Tensor) else (x, *self.output[1:])


class Entrance:
    """The output of `source`, as a place to enter; the modules `below` it need not run then."""

    def __init__(self, source: nn.Module, below: Sequence[nn.Module] = ()) -> None:
        self.source, self.below = source, tuple(below)

    @contextmanager
    def noted(self, dropout: DropoutState | None = None) -> Iterator[Noted]:
        """Note the output in the body, and `dropout`'s state after it for masks that are to be drawn again."""
        noted = Noted()

        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            noted.output, noted.num_calls = output, noted.num_calls + 1
            noted.dropout_state = dropout.snapshot() if dropout is not None else None

        handle = self.source.register_forward_hook(note)
        try:
            yield noted
        finally:
            handle.remove()

    @contextmanager
    def replaced(self, x: Tensor, noted: Noted, dropout: DropoutState | None = None) -> Iterator[None]:
        """`source` returns `x` in the body; `dropout` goes on from the state that was noted."""

        def entered(*_inputs: Any, **_options: Any) -> Any:
            if dropout is not None and noted.dropout_state is not None:
                dropout.restore(noted.dropout_state)
            return noted.in_form(x)

        def skipped(*inputs: Any, **options: Any) -> Any:
            return noted.in_form(inputs[0] if inputs else options["hidden_states"])

        with ExitStack() as stack:
            stack.enter_context(_forward_of(self.source, entered))
            for module in self.below:
                stack.enter_context(_forward_of(module, skipped))
            yield


def embedding_module(model: nn.Module) -> Any | None:
    """The base model's module that sums word, position and type embeddings, or None."""
    return getattr(_base(model), "embeddings", None)


def word_embeddings(model: nn.Module) -> Any | None:
    """The module that looks up words: the transformers model's own, or the only table of any other module."""
    base = _base(model)
    if isinstance(base, PreTrainedModel):
        try:
            return base.get_input_embeddings()
        except (NotImplementedError, AttributeError):
            return None
    tables = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    return tables[0] if len(tables) == 1 else None


def layer_list(model: nn.Module) -> nn.ModuleList | None:
    """The base model's list of layers, as many as its configuration counts; None where there is not exactly one.

    Layers shared between depths (ALBERT) have none, layers kept in pieces (XLM) and two stacks (BART) have several.
    """
    base = _base(model)
    count = getattr(getattr(base, "config", None), "num_hidden_layers", None)
    lists = {n: m for n, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    outermost = [m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)]
    return outermost[0] if len(outermost) == 1 else None


def without_adapters(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model, whose adapters sit in its layers; any other as it is."""
    inside: Any = model
    return inside.get_base_model() if hasattr(inside, "get_base_model") else inside


def _base(model: nn.Module) -> nn.Module:
    """The encoder without its head; in a module of the user's own, the transformers model that it holds."""
    own = without_adapters(model)
    if not isinstance(own, PreTrainedModel):
        inside = [module for module in own.children() if isinstance(module, PreTrainedModel)]
        own = inside[0] if len(inside) == 1 else own
    base: nn.Module = own.base_model if isinstance(own, PreTrainedModel) else own
    return base


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` runs `forward` in the body, in the place of its class's or of one that somebody has set on it."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
