"""What torch.compile must not look into: functions that it takes over as one opaque operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


class Opaque(Protocol):
    """A function that runs as it is, also from compiled code."""

    def __call__(self, *args: Any) -> Any:
        """Tensors, numbers and strings."""

    def register_fake(self, fake: F) -> F:
        """`fake` gives tensors of the answer's shapes, for the compiler."""


class _Broken:
    """For a torch without leaf functions: the graph ends before the call and goes on after it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._run = torch.compiler.disable(function)

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def register_fake(self, fake: F) -> F:
        return fake


def opaque_to_compiler(function: Callable[..., Any]) -> Opaque:
    """`function`, differentiable by autograd as ever, as one operation of compiled code where torch can do that."""
    try:
        from torch._dynamo.decorators import leaf_function
    except ImportError:
        return _Broken(function)
    leaf: Opaque = leaf_function(function)
    return leaf
