"""How commands put things to people: the refusal of an unknown name, and figures with a unit that fits their size."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def not_one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """The refusal of a `value` of `name` (a flag, say) that is none of the `known` ones; it suggests the nearest."""
    known = list(known)
    return f"{name} must be one of {', '.join(known)}, but is {value!r} instead.{did_you_mean(value, known)}"


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """ " Did you mean X?" with the one of `known` that is nearest to `word`, by their letters; "" if none is near."""
    by_letters = {_letters(name): name for name in known}
    nearest = difflib.get_close_matches(_letters(word), list(by_letters), n=1, cutoff=0.5)
    return f" Did you mean {by_letters[nearest[0]]}?" if nearest else ""


def _letters(name: Any) -> str:
    """The name in small letters, without the dashes of a flag, and with dashes inside."""
    return str(name).lower().lstrip("-").replace("_", "-")


def duration(seconds: float) -> str:
    """ "41 seconds", "2.5 minutes", "7.3 hours" or, from two days on, "12 days": three digits."""
    units = (("second", 1, 60.0), ("minute", 60, 3600.0), ("hour", 3600, 2 * 86_400.0), ("day", 86_400, math.inf))
    text, unit = next((figure(seconds / length), unit) for unit, length, end in units if seconds < end)
    return f"{text} {unit}{'' if text == '1' else 's'}"


def amount(number: float) -> str:
    """ "9,120" below a million, then "1.23 million", "45.6 billion", "7.89 trillion": three digits."""
    for unit, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{figure(number / size)} {unit}"
    return f"{number:,.0f}"


def data_size(num_bytes: float) -> str:
    """ "512 bytes", "4.1 kB", "23.5 MB", "1.34 GB" or "2.5 TB", in powers of 1000: three digits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{figure(num_bytes / size)} {unit}"
    return f"{num_bytes:.0f} bytes"


def counted(number: int, noun: str) -> str:
    """ "1 seed", "5 seeds", "1,024 examples"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def figure(number: float) -> str:
    """Three significant digits, and all of those before the point; never an exponent: 0.00123, 1.5, 12.3, 1,235."""
    if number == 0:
        return "0"
    digits = max(0, 2 - _exponent(number))
    text = f"{number:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _exponent(number: float) -> int:
    """That of the scientific notation with three digits, so that 9.999 counts as 10.0."""
    return int(f"{number:.2e}".partition("e")[2])
