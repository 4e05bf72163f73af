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
from typing import Annotated, Any, Literal

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


@functools.cache
def _admitted(cls: type) -> dict[str, Range | tuple[str, ...]]:
    """{field: its range or choices}, for the fields that have any."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: admitted for name, hint in hints.items() if (admitted := _admitted_by(hint)) is not None}


def _admitted_by(hint: Any) -> Range | tuple[str, ...] | None:
    """The range or the choices in a type, in a member of its union or in a tuple's items."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Range):
            return note
    return next((found for inner in typing.get_args(hint) if (found := _admitted_by(inner)) is not None), None)
