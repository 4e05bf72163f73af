"""How a single value is checked: against the range or the choices in its field's annotation.

    learning_rate: Positive = 1e-4
    kind: Literal["fast", "safe"] = "safe"

A configuration's `__post_init__` calls `check_fields(self)`; checks that need two fields are written out there.
"""

from __future__ import annotations

import functools
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from megatron_alum.config.words import not_one_of


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, excluding open ends, infinity and nan."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (value == self.low and not self.low_open)
        below = value < self.high or (value == self.high and not self.high_open)
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        """What follows "must be" in an error."""
        low = f"{'above' if self.low_open else 'at least'} {self.low}"
        high = f"{'below' if self.high_open else 'at most'} {self.high}"
        if math.isinf(self.high):
            return "positive" if self.low_open and self.low == 0 else low
        return f"{low} and {high}" if self.low_open or self.high_open else f"from {self.low} to {self.high}"


class Noun:
    """An annotation that says what a value is."""

    @property
    def noun(self) -> str:
        """The placeholder of the value in --help."""
        raise NotImplementedError


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
PositiveOrZero = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, high_open=True)]


def flag_of(owner: type, field: str) -> str:
    """The command-line spelling of a configuration's field."""
    return "--" + (getattr(owner, "FLAG_PREFIX", "") + field).replace("_", "-")


def check_fields(config: Any) -> None:
    """Check every field of a configuration, and every item of a tuple, against its annotation; None is not checked.

    Raises: ValueError naming the flag, the permitted values and the value.
    """
    owner: type = type(config)
    for name, admitted in _admitted(owner).items():
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if item is None or item in admitted:
                continue
            if isinstance(admitted, tuple):
                raise ValueError(not_one_of(flag_of(owner, name), item, admitted))
            finite = " and finite" if isinstance(item, float) and not math.isfinite(item) else ""
            raise ValueError(f"{flag_of(owner, name)} must be {admitted}{finite}, but is {item!r} instead.")


N = TypeVar("N")


def annotation_of(owner: type, field: str, kind: type[N]) -> N | None:
    """The first annotation of class `kind` in a field's type, in a member of its union or in a tuple's items."""
    return _found_in(_hints(owner)[field], kind)


def _found_in(hint: Any, kind: type[N]) -> N | None:
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, kind):
            return note
    return next((found for inner in typing.get_args(hint) if (found := _found_in(inner, kind)) is not None), None)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@functools.cache
def _admitted(cls: type) -> dict[str, Range | tuple[str, ...]]:
    """{field: its range or choices}, for the fields that have any."""
    found = {name: _choices_in(hint) or _found_in(hint, Range) for name, hint in _hints(cls).items()}
    return {name: admitted for name, admitted in found.items() if admitted is not None}


def _choices_in(hint: Any) -> tuple[str, ...] | None:
    """The choices of a Literal in a type, in a member of its union or in a tuple's items."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return next((found for inner in typing.get_args(hint) if (found := _choices_in(inner)) is not None), None)
