"""How templates write their text: patterns of the table, and the few kinds that need more.

    -             nothing
    {1} {2}       arguments by position or name; {a,1} the first of them that is given; {*} all of them,
                  {-1} the last; {#1} a number in the signs of the language
    < ... >       left out when one of its arguments is not given
    "..."         this text
    =list a,b     the arguments of these names that are given, with semicolons
    =name         one of WRITERS: dates, {{convert}} and its like; "=name from 4" by its arguments from the fourth on

What a template computes (conversions, ages, inflation) and the names of languages are left out.
"""

import re
from collections.abc import Callable
from functools import partial

from megatron_alum.data.preprocessing.readers.wikitext import dates, quantities
from megatron_alum.data.preprocessing.readers.wikitext.numbers import Arguments, is_number, positional, written

Writer = Callable[[Arguments], str]

_FIELD = re.compile(r"\{([^{}]+)\}")
_OPTIONAL = re.compile("<([^<>]*)>")
_CODE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*")
"""Of a language; titles begin with a capital letter."""
_QUALIFIER = re.compile(r"\s*\([^()]*\)$")


def writer(pattern: str, language: str) -> Writer:
    """The writer of a row of templates.tsv."""
    if pattern == "-":
        return nothing
    if pattern.startswith("=centuries "):
        return partial(dates.centuries, pattern.partition(" ")[2])
    if pattern.startswith("=list "):
        return partial(_list, pattern.partition(" ")[2].split(","))
    if pattern.startswith("="):
        name, _, first = pattern[1:].partition(" from ")
        write = partial(_OF_LANGUAGE[name], language) if name in _OF_LANGUAGE else WRITERS[name]
        return partial(_from, int(first), write) if first else write
    if pattern.startswith('"'):
        return partial(_constant, pattern[1:-1])
    return partial(_fill, pattern, language)


def nothing(_given: Arguments) -> str:
    """A template that leaves no text."""
    return ""


def _from(first: int, write: Writer, given: Arguments) -> str:
    return write({str(i): value for i, value in enumerate(positional(given)[first - 1 :], 1)})


def _constant(text: str, _given: Arguments) -> str:
    return text


def _fill(pattern: str, language: str, given: Arguments) -> str:
    """The pattern with its arguments; nothing when it asks for some outside of < > and none is given."""

    def field(found: re.Match[str]) -> str:
        names = found[1]
        return written(_field(names[1:], given), language) if names[0] == "#" else _field(names, given)

    needed = [field(found) for found in _FIELD.finditer(_OPTIONAL.sub("", pattern))]
    if needed and not any(needed):
        return ""
    text = _OPTIONAL.sub(lambda part: part[1] if all(map(field, _FIELD.finditer(part[1]))) else "", pattern)
    return _FIELD.sub(field, text).strip()


def _field(names: str, given: Arguments) -> str:
    if names == "*":
        return " ".join(filter(None, positional(given)))
    if names == "-1":
        return (positional(given) or [""])[-1]
    return next((given[name] for name in names.split(",") if given.get(name)), "")


def _list(names: list[str], given: Arguments) -> str:
    """{{zh|c=\u5317\u4eac|p=B\u011bij\u012bng}} -> both, a semicolon between them."""
    return "; ".join(given[name] for name in names if given.get(name))


def _words(given: Arguments) -> str:
    """{{cn|It rained|2010}} -> "It rained": the text that a note marks, where it has any; figures are the note's."""
    text = given.get("1") or given.get("text") or given.get("texte", "")
    return "" if is_number(text) else text


def _block(given: Arguments) -> str:
    """Text of its own lines; the author under a quotation is left out."""
    text = given.get("text") or given.get("quote") or given.get("1", "")
    return f"\n{text}\n" if text else ""


def _columns(given: Arguments) -> str:
    """{{columns-list|2|* a}} -> the list."""
    texts = [*positional(given), *(given[key] for key in ("liste", "content", "texto", "testo") if key in given)]
    return "".join(f"\n{text}\n" for text in texts if text and not is_number(text))


def _linked(given: Arguments) -> str:
    """{{ill|Title|de|Titel}} or {{ill|de|Title|Titel}} -> "Title": a link to a page that only another wiki has."""
    shown = next((given[name] for name in ("label", "lt", "display", "texto") if given.get(name)), "")
    values = positional(given)
    return shown or (values[1] if len(values) > 1 and _CODE.fullmatch(values[0]) else "".join(values[:1]))


def _glossed(given: Arguments) -> str:
    """{{nihongo|English|kanji|romaji}} -> "English (kanji, romaji)"."""
    inside = ", ".join(given[key] for key in ("2", "3") if given.get(key))
    return f"{given['1']} ({inside})" if given.get("1") and inside else given.get("1") or inside


_ACCIDENTALS = {"flat": "\u266d", "b": "\u266d", "sharp": "\u266f", "#": "\u266f", "natural": "\u266e", "n": "\u266e"}
_SEA_LEVELS = {
    "DE-NHN": "\u00fc. NHN",
    "DE-NN": "\u00fc. NN",
    "DE": "\u00fc. NHN",
    "AT": "\u00fc. A.",
    "CH": "\u00fc. M.",
}


def _music(given: Arguments) -> str:
    """{{music|flat}} -> the sign; {{music|time|3|4}} -> "3/4"."""
    if given.get("1", "").startswith("time"):
        return "/".join(positional(given)[1:])
    return _ACCIDENTALS.get(given.get("1", ""), "")


def _height(given: Arguments) -> str:
    """{{H\u00f6he|28.1|DE-NHN}} -> "28,1 m \u00fc. NHN"; thousands are not set off."""
    number = given.get("1", "").replace(".", ",")
    return f"{number} m {_SEA_LEVELS.get(given.get('2', '').upper(), '')}".strip() if number else ""


_OF_LANGUAGE: dict[str, Callable[[str, Arguments], str]] = {
    "dmy": dates.dmy,
    "unit": quantities.with_unit,
}
"""Writers that the table names, of which each language has its own."""
WRITERS: dict[str, Writer] = {
    "convert": quantities.convert,
    "value": quantities.scientific,
    "power": quantities.power_of_ten,
    "density": quantities.density,
    "gauge": quantities.gauge,
    "chemical": quantities.chemical,
    "fraction": quantities.fraction,
    "time": quantities.time,
    "ymd": dates.ymd,
    "as of": dates.as_of,
    "circa": partial(dates.before, "c."),
    "floruit": partial(dates.before, "fl."),
    "siglo": dates.siglo,
    "old style": dates.old_style,
    "born died": dates.born_died,
    "born died in brackets": lambda given: f"\uff08{dates.born_died(given)}\uff09" if positional(given) else "",
    "height": _height,
    "words": _words,
    "quote": _block,
    "columns": _columns,
    "link": _linked,
    "glossed": _glossed,
    "sic": lambda given: "".join(positional(given)) or "[sic]",
    "joined": lambda given: "".join(positional(given)),
    "keys": lambda given: "+".join(filter(None, positional(given))),
    "music": _music,
    "untitled": lambda given: _QUALIFIER.sub("", given.get("1", "")),
    "or space": lambda given: given.get("1") or " ",
}
"""The others."""
