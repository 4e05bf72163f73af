"""Arguments of templates, and numbers as the pages of each language write them.

A source says {{formatnum:10236.5}} and the page of a German wiki shows "10.236,5", of a French one "10 236,5": the
signs stand in tables/numbers.tsv. Only plain numbers are written anew; what is grouped already, and what is no number,
stays as it is.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Arguments = dict[str, str]
"""Positional arguments under "1", "2", ..., named ones under their names in lower case; all stripped."""

_NUMBER = re.compile(r"^[\d.,/+\u2212\u2013-]+$")
_GROUP = 3


@dataclass(frozen=True)
class _Style:
    group: str = ","
    decimal: str = "."
    fewest: int = 1
    """digits that stand before a group at least: 2 leaves 1234 alone"""


def positional(given: Arguments) -> list[str]:
    """The positional arguments in order."""
    values: list[str] = []
    while (key := str(len(values) + 1)) in given:
        values.append(given[key])
    return values


def is_number(text: str) -> bool:
    """Digits with their separators."""
    return _NUMBER.match(text) is not None


def written(text: str, language: str) -> str:
    """`text` with its plain numbers in the signs of the language: "25000.5 km" -> "25.000,5 km" in German."""
    style = _styles().get(language) or _styles().get(language.partition("-")[0]) or _Style()

    def number(found: re.Match[str]) -> str:
        whole = found[1]
        if len(whole) >= _GROUP + style.fewest and whole[0] != "0":
            first = len(whole) % _GROUP or _GROUP
            whole = style.group.join([whole[:first], *(whole[i : i + 3] for i in range(first, len(whole), _GROUP))])
        return whole + (style.decimal + found[2] if found[2] else "")

    point = r"\." if style.decimal == "." else "[.,]"
    return re.sub(rf"(?<![\d.,])(\d+)(?:{point}(\d+))?(?![\d]|[.,]\d)", number, text)


@lru_cache(maxsize=1)
def _styles() -> dict[str, _Style]:
    lines = (Path(__file__).with_name("tables") / "numbers.tsv").read_text(encoding="utf-8").split("\n")
    styles: dict[str, _Style] = {}
    for codes, signs, fewest in (line.split("\t") for line in lines if line and not line.startswith("#")):
        group, decimal = signs.replace("space", "\u00a0").split(" ")
        styles.update(dict.fromkeys(codes.split("|"), _Style(group, decimal, int(fewest))))
    return styles
