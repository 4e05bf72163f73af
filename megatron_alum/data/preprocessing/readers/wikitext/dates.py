"""Dates and centuries as the templates of each language write them."""

import re
from functools import lru_cache
from pathlib import Path

from megatron_alum.data.preprocessing.readers.wikitext.numbers import Arguments, is_number, positional

_ROMAN = re.compile(r"[IVXLCDM]+|\d+")
_ORDINAL = re.compile(r"er|re|e|\u00e8me|nd|nde")
_FIGURES = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})|(\d{1,2})\.(\d{1,2})\.(\d{4})")
_MONTHS = "January February March April May June July August September October November December".split()


@lru_cache(maxsize=1)
def _date_rows() -> dict[str, tuple[str, list[str]]]:
    lines = (Path(__file__).with_name("tables") / "dates.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {language: (pattern, months.split("|")) for language, pattern, months in rows}


def dmy(language: str, given: Arguments) -> str:
    """{{date|11|11|1866}} or {{date|11|novembre|1866}} -> "11 novembre 1866", in the words of the language.

    One argument is a date as it stands, in figures (1866-11-11, 11.11.1866) or words; two are a day and a month.
    """
    values = positional(given)[:3]
    if values and (figures := _FIGURES.fullmatch(values[0])):
        values = [found for found in figures.groups() if found]
    if len(values) == 3 and re.fullmatch(r"\d{4}", values[0]):
        values.reverse()
    pattern, months = _date_rows().get(language, ("", []))
    if len(values) < 2 or not pattern:
        return " ".join(filter(None, values))
    day, month, year = [*values, ""][:3]
    if month.isdigit() and 1 <= int(month) <= len(months):
        month = months[int(month) - 1]
    if day.isdigit():
        day = "1er" if language == "fr" and int(day) == 1 else str(int(day))
    if day and month and year:
        return pattern.format(d=day, m=month, y=year)
    return " ".join(filter(None, [day, month, year]))


def ymd(given: Arguments) -> str:
    """{{birth date|1905|2|20}} -> "February 20, 1905", or "20 February 1905" with df=y; any text as it is."""
    year, month, day = ([*positional(given), "", "", ""])[:3]
    if not (month.isdigit() and 1 <= int(month) <= len(_MONTHS)):
        return year
    named = _MONTHS[int(month) - 1]
    if not day.isdigit():
        return f"{named} {year}"
    return f"{int(day)} {named} {year}" if given.get("df") else f"{named} {int(day)}, {year}"


def as_of(given: Arguments) -> str:
    """{{As of|2010|6|lc=y}} -> "as of June 2010"."""
    if given.get("alt"):
        return given["alt"]
    date = ymd({**given, "df": given.get("df", "y")})
    words = (
        ("since" if given.get("since") else "as of") if given.get("lc") else "Since" if given.get("since") else "As of"
    )
    return f"{words} {date}" if date else ""


def centuries(noun: str, given: Arguments) -> str:
    """{{s2-|XIX|e|XX|e}} -> "XIXe et XXe si\u00e8cles": Roman numbers, the endings of their ordinals, and the noun.

    An ending that is not given is that of French: "Ier", "XIIe".
    """
    words: list[str] = []
    numbers = 0
    for value in filter(None, positional(given)):
        if _ROMAN.fullmatch(value):
            words += ["et", value] if numbers and _ROMAN.match(words[-1]) else [value]
            numbers += 1
        elif words and _ORDINAL.fullmatch(value) and _ROMAN.fullmatch(words[-1]):
            words[-1] += value
        elif numbers == 1:  # "et", "ou", "-"
            words.append(value)
    if not numbers:
        return ""
    words = [word + ("er" if word in ("I", "1") else "e") if _ROMAN.fullmatch(word) else word for word in words]
    first, _, rest = noun.partition(" ")
    return " ".join([*words, first + "s" * (numbers > 1 and first[-1] != "."), rest]).strip()


def siglo(given: Arguments) -> str:
    """{{siglo|XIX}} -> "XIX", {{siglo|II|a|s}} -> "siglo II a. C.": the word only where the third argument asks."""
    if not (century := given.get("1")):
        return ""
    word = {"s": "siglo ", "S": "Siglo "}.get(given.get("3", ""), "")
    era = {"a": " a. C.", "d": " d. C."}.get(given.get("2", "").lower(), "")
    return word + century + era


def born_died(given: Arguments) -> str:
    """{{bd|1866\u5e74|11\u670811\u65e5|1936\u5e74|9\u670821\u65e5}} -> both dates; {{BD}} has brackets, {{bd}} none."""
    born, died = (given.get(a, "") + given.get(b, "") for a, b in (("1", "2"), ("3", "4")))
    return f"{born}\uff0d{died}" if born else ""


def before(word: str, given: Arguments) -> str:
    """{{circa|1500|1510}} -> "c. 1500 - c. 1510" with a dash."""
    return " \u2013 ".join(f"{word} {value}" for value in positional(given)) or word


def old_style(given: Arguments) -> str:
    """Dates of both calendars as in Russian, the Julian one first.

    {{OldStyleDate|28|November|1917|15}} -> "15 (28) November 1917": day, month, year, then what differs in the Julian
    date. {{SS2|7 November|1917|25 October}} -> "25 October (7 November) 1917".
    """
    values = [given.get(str(i), "") for i in range(1, 7)]
    if not values[3]:
        return f"{values[2]} ({values[0]}) {values[1]}" if is_number(values[1]) else " ".join(filter(None, values))
    # what both have in common follows the bracket
    shared = 4 + sum(map(bool, values[4:]))
    julian, gregorian = " ".join(values[3:shared]), " ".join(filter(None, values[: shared - 3]))
    return " ".join(filter(None, [julian, f"({gregorian})", *values[shared - 3 : 3]]))
