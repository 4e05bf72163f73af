"""How templates write their text: patterns of the table, and the few kinds that need more.

    -             nothing
    {1} {2}       arguments by position or name; {a,1} the first of them that is given; {*} all of them,
                  {-1} the last
    < ... >       left out when one of its arguments is not given
    "..."         this text
    =name         one of WRITERS: dates, {{convert}} and its like

What a template computes (conversions, ages, inflation) and the names of languages are left out; only densities are
divided.
"""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

Arguments = dict[str, str]
"""Positional arguments under "1", "2", ..., named ones under their names in lower case; all stripped."""
Writer = Callable[[Arguments], str]

_NUMBER = re.compile(r"^[\d.,/+\u2212\u2013-]+$")
_ROMAN = re.compile(r"[IVXLCDM]+|\d+")
_ORDINAL = re.compile(r"er|re|e|\u00e8me|nd|nde")
_FIELD = re.compile(r"\{([^{}]+)\}")
_OPTIONAL = re.compile("<([^<>]*)>")
_CODE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*")
"""Of a language; titles begin with a capital letter."""
_MONTHS = "January February March April May June July August September October November December".split()


def writer(pattern: str, language: str) -> Writer:
    """The writer of a row of templates.tsv."""
    if pattern == "-":
        return nothing
    if pattern.startswith("=centuries "):
        return partial(_centuries, pattern.partition(" ")[2])
    if pattern.startswith("="):
        return partial(_dmy, language) if pattern == "=dmy" else WRITERS[pattern[1:]]
    if pattern.startswith('"'):
        return partial(_constant, pattern[1:-1])
    return partial(_fill, pattern)


def nothing(_given: Arguments) -> str:
    """A template that leaves no text."""
    return ""


def _constant(text: str, _given: Arguments) -> str:
    return text


def _fill(pattern: str, given: Arguments) -> str:
    """The pattern with its arguments; nothing when it asks for some outside of < > and none is given."""
    needed = [_field(found[1], given) for found in _FIELD.finditer(_OPTIONAL.sub("", pattern))]
    if needed and not any(needed):
        return ""
    text = _OPTIONAL.sub(lambda part: part[1] if _has_all(part[1], given) else "", pattern)
    return _FIELD.sub(lambda found: _field(found[1], given), text).strip()


def _has_all(pattern: str, given: Arguments) -> bool:
    return all(_field(found[1], given) for found in _FIELD.finditer(pattern))


def _field(names: str, given: Arguments) -> str:
    if names == "*":
        return " ".join(filter(None, positional(given)))
    if names == "-1":
        return (positional(given) or [""])[-1]
    return next((given[name] for name in names.split(",") if given.get(name)), "")


def positional(given: Arguments) -> list[str]:
    """The positional arguments in order."""
    values: list[str] = []
    while (key := str(len(values) + 1)) in given:
        values.append(given[key])
    return values


def is_number(text: str) -> bool:
    """Digits with their separators."""
    return _NUMBER.match(text) is not None


@lru_cache(maxsize=1)
def _date_rows() -> dict[str, tuple[str, list[str]]]:
    lines = (Path(__file__).with_name("tables") / "dates.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {language: (pattern, months.split("|")) for language, pattern, months in rows}


def _dmy(language: str, given: Arguments) -> str:
    """{{date|11|11|1866}} or {{date|11|novembre|1866}} -> "11 novembre 1866", in the words of the language."""
    values = positional(given)[:3]
    iso = re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})", values[0]) if values else None
    if iso:
        values = [iso[3], iso[2], iso[1]]
    elif len(values) == 3 and re.fullmatch(r"\d{4}", values[0]):
        values.reverse()
    pattern, months = _date_rows().get(language, ("", []))
    if len(values) < 3 or not (values[0] and values[1]) or not pattern:
        return " ".join(filter(None, values))
    day, month, year = values
    if day.isdigit():
        day = "1er" if language == "fr" and int(day) == 1 else str(int(day))
    if month.isdigit() and 1 <= int(month) <= len(months):
        month = months[int(month) - 1]
    return pattern.format(d=day, m=month, y=year).strip() if year else " ".join([day, month])


_UNITS = {
    "sqmi": "square miles",
    "sqkm": "km\u00b2",
    "km2": "km\u00b2",
    "m2": "m\u00b2",
    "m3": "m\u00b3",
    "m3/s": "m\u00b3/s",
    "sqft": "square feet",
    "cuft": "cubic feet",
    "cuyd": "cubic yards",
    "acre": "acres",
    "usgal": "US gallons",
    "impgal": "imperial gallons",
    "oilbbl": "barrels",
    "oilbbl/d": "barrels per day",
    "pd/sqmi": "inhabitants per square mile",
    "pd/km2": "inhabitants per km\u00b2",
    "c": "\u00b0C",
    "f": "\u00b0F",
    "c-change": "\u00b0C",
    "f-change": "\u00b0F",
    "mi": "miles",
    "ft": "feet",
    "in": "inches",
    "lb": "pounds",
}
"""Codes of {{convert}}, in lower case, that are no text; the others are (km, kg, mph)."""
_SINGULAR = {"feet": "foot", "inches": "inch"}
_SINGULAR |= {name + "s": name for name in ("mile", "pound", "acre", "gallon", "barrel", "yard")}
_POWER = re.compile(r"^(?:e(3|6|9|12)(?=\D)|([kMGT])(?=oilbbl|cuft|USgal|impgal))")
_POWERS = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}
_POWERS |= {"k": "thousand", "M": "million", "G": "billion", "T": "trillion"}
_BETWEEN = {"to", "and", "or", "x", "by", "-", "\u2013", "to(-)", "and(-)", "xx", "*"}
_WITH_SMALLER_UNIT = {"ft", "lb", "st"}


def _unit(code: str) -> str:
    power = _POWER.match(code)
    if power:
        return f"{_POWERS[power[1] or power[2]]} {_unit(code[power.end() :])}"
    return _UNITS.get(code.lower(), code)


def _singular(unit: str) -> str:
    return " ".join(_SINGULAR.get(word, word) for word in unit.split(" "))


def _grouped(number: str) -> str:
    """Thousands set off by commas, in whole numbers and before the decimal point."""
    return re.sub(r"(?<![\d.,])[1-9]\d{3,}(?!\d|,)", lambda match: f"{int(match[0]):,}", number)


def _convert(given: Arguments) -> str:
    """{{convert|10|to|20|km|mi}} -> "10 to 20 km"; {{convert|5|ft|11|in|m}} -> "5 feet 11 inches"."""
    words: list[str] = []
    adjective = given.get("adj", "").startswith("on")
    values = positional(given)
    for i, value in enumerate(values):
        after_number = bool(words) and bool(_NUMBER.match(words[-1]))
        if _NUMBER.match(value) or (after_number and value.lower() in _BETWEEN):
            words.append(value if value.lower() in _BETWEEN or given.get("comma") else _grouped(value))
        elif after_number:
            smaller_follows = value.lower() in _WITH_SMALLER_UNIT and _NUMBER.match("".join(values[i + 1 : i + 2]))
            if len(words) == 1 and not smaller_follows and (adjective or words == ["1"]):
                words.append(_singular(_unit(value)).replace(" ", "-" if adjective else " "))
            else:
                words.append(value if adjective else _unit(value))
            if not smaller_follows:
                break
    joined = ("-" if adjective and len(words) == 2 else " ").join(words)
    return re.sub(r" (?:-|\u2013|to\(-\)|and\(-\)) ", "\u2013", joined)


def _value(given: Arguments) -> str:
    """{{val|1.5|e=6|u=km}} -> "1.5x10^6 km" with the sign of multiplication."""
    power = _power_of_ten({"1": given.get("e", "")})
    unit = next((given[key] for key in ("u", "ul") if given.get(key)), "")
    return f"{given.get('1', '')}{power} {unit}".strip()


def _power_of_ten(given: Arguments) -> str:
    """{{e|24}} -> "x10^24" with the sign of multiplication, and that of subtraction for a negative power."""
    return "\u00d710^" + given["1"].replace("-", "\u2212") if given.get("1") else ""


def _density(given: Arguments) -> str:
    """{{Pop density|3645257|640081.87|km2|prec=1}} -> "5.7/km\u00b2"; without `prec`, no decimals from 10 on."""
    unit = {"km2": "km\u00b2", "sqmi": "sq mi", "ha": "ha", "acre": "acre"}.get(given.get("3", "").lower())
    try:
        people, area = (float(given[key].replace(",", "")) for key in ("1", "2"))
        density = people / area
        decimals = int(given.get("prec") or (0 if density >= 10 else 1))
    except (KeyError, ValueError, ZeroDivisionError):
        return ""
    rounded = round(density, decimals)
    return f"{rounded:,.{max(0, decimals)}f}/{unit}" if unit else ""


def _gauge(given: Arguments) -> str:
    """{{RailGauge|1435mm}} -> "1,435 mm"; {{RailGauge|4ft8.5in}} -> "4 ft 8.5 in"; any other name as it is."""
    code = given.get("1", "").lower().replace(" ", "")
    if code in ("sg", "standard"):
        return "1,435 mm"
    if not re.fullmatch(r"(?:[\d.]+(?:mm|ft|in|m))+", code):
        return given.get("1", "")
    return _grouped(re.sub(r"([\d.]+)([a-z]+)", r"\1 \2 ", code).strip())


def _chemical(given: Arguments) -> str:
    """{{chem|SO|4|2-}} -> "SO42-" with the sign of subtraction for the charge; the hyphen of a bond stays."""
    return "".join(re.sub(r"-(\)?)$", "\u2212\\1", part) for part in positional(given))


def _fraction(given: Arguments) -> str:
    parts = positional(given)
    whole = parts.pop(0) + " " if len(parts) == 3 else ""
    return whole + ("/".join(parts) if len(parts) > 1 else "1/" + parts[0] if parts else "")


def _date(given: Arguments) -> str:
    """{{birth date|1905|2|20}} -> "February 20, 1905", or "20 February 1905" with df=y; any text as it is."""
    year, month, day = ([*positional(given), "", "", ""])[:3]
    if not (month.isdigit() and 1 <= int(month) <= len(_MONTHS)):
        return year
    named = _MONTHS[int(month) - 1]
    if not day.isdigit():
        return f"{named} {year}"
    return f"{int(day)} {named} {year}" if given.get("df") else f"{named} {int(day)}, {year}"


def _as_of(given: Arguments) -> str:
    """{{As of|2010|6|lc=y}} -> "as of June 2010"."""
    if given.get("alt"):
        return given["alt"]
    date = _date({**given, "df": given.get("df", "y")})
    words = (
        ("since" if given.get("since") else "as of") if given.get("lc") else "Since" if given.get("since") else "As of"
    )
    return f"{words} {date}" if date else ""


def _quotation(given: Arguments) -> str:
    """A block of its own; the author under it is left out."""
    text = given.get("text") or given.get("quote") or given.get("1", "")
    return f"\n{text}\n" if text else ""


def _unit_with_powers(given: Arguments) -> str:
    """{{unit\u00e9|30|km|h|-1}} -> "30 km h-1" with the sign of subtraction: a number, then units and their powers."""
    number, *rest = [*positional(given), ""]
    powers = {"2": "\u00b2", "3": "\u00b3", "": "", "1": ""}
    units = [
        unit + powers.get(power, power.replace("-", "\u2212"))
        for unit, power in zip(rest[::2], [*rest[1::2], ""], strict=False)
        if unit
    ]
    return " ".join([number, *units]).strip() + _power_of_ten({"1": given.get("e", "")})


def _centuries(noun: str, given: Arguments) -> str:
    """{{s2-|XIX|e|XX|e}} -> "XIXe et XXe si\u00e8cles": Roman numbers, the endings of their ordinals, and the noun."""
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
    first, _, rest = noun.partition(" ")
    return " ".join([*words, first + "s" * (numbers > 1 and first[-1] != "."), rest]).strip()


def _siglo(given: Arguments) -> str:
    """{{siglo|XIX}} -> "XIX", {{siglo|II|a|s}} -> "siglo II a. C.": the word only where the third argument asks."""
    if not (century := given.get("1")):
        return ""
    word = {"s": "siglo ", "S": "Siglo "}.get(given.get("3", ""), "")
    era = {"a": " a. C.", "d": " d. C."}.get(given.get("2", "").lower(), "")
    return word + century + era


def _born_died(given: Arguments) -> str:
    """{{bd|1866\u5e74|11\u670811\u65e5|1936\u5e74|9\u670821\u65e5}} -> both dates in brackets."""
    born, died = (given.get(a, "") + given.get(b, "") for a, b in (("1", "2"), ("3", "4")))
    return f"\uff08{born}\uff0d{died}\uff09" if born else ""


def _time(given: Arguments) -> str:
    """{{heure|10|30}} -> "10 h 30"."""
    hours, minutes, seconds = [*positional(given), "", "", ""][:3]
    return " ".join(filter(None, [f"{hours} h" if hours else "", minutes, f"min {seconds}" if seconds else ""]))


def _before(word: str, given: Arguments) -> str:
    """{{circa|1500|1510}} -> "c. 1500 - c. 1510" with a dash."""
    return " \u2013 ".join(f"{word} {value}" for value in positional(given)) or word


def _linked(given: Arguments) -> str:
    """{{ill|Title|de|Titel}} or {{ill|de|Title|Titel}} -> "Title": a link to a page that only another wiki has."""
    shown = next((given[name] for name in ("label", "lt", "display", "texto") if given.get(name)), "")
    values = positional(given)
    return shown or (values[1] if len(values) > 1 and _CODE.fullmatch(values[0]) else "".join(values[:1]))


def _glossed(given: Arguments) -> str:
    """{{nihongo|English|kanji|romaji}} -> "English (kanji, romaji)"."""
    inside = ", ".join(given[key] for key in ("2", "3") if given.get(key))
    return f"{given['1']} ({inside})" if given.get("1") and inside else given.get("1") or inside


_ACCIDENTALS = {"flat": "\u266d", "b": "\u266d", "sharp": "\u266f", "#": "\u266f"}
WRITERS: dict[str, Writer] = {
    "convert": _convert,
    "value": _value,
    "power": _power_of_ten,
    "density": _density,
    "gauge": _gauge,
    "chemical": _chemical,
    "fraction": _fraction,
    "ymd": _date,
    "as of": _as_of,
    "circa": partial(_before, "c."),
    "floruit": partial(_before, "fl."),
    "quote": _quotation,
    "sic": lambda given: "".join(positional(given)) or "[sic]",
    "joined": lambda given: "".join(positional(given)),
    "keys": lambda given: "+".join(filter(None, positional(given))),
    "unit": _unit_with_powers,
    "music": lambda given: _ACCIDENTALS.get(given.get("1", ""), ""),
    "glossed": _glossed,
    "link": _linked,
    "siglo": _siglo,
    "or space": lambda given: given.get("1") or " ",
    "born died": _born_died,
    "time": _time,
}
"""Writers that the table names."""
