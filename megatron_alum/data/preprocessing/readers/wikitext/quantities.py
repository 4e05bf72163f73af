"""Quantities: what {{convert}} and its like leave, numbers with units, times of the day, formulas.

What a template computes from a number (the other unit of {{convert}}) is left out; only densities are divided.
"""

import re

from megatron_alum.data.preprocessing.readers.wikitext.numbers import Arguments, is_number, positional, written

_UNITS = {
    "yd": "yards",
    "nmi": "nautical miles",
    "kn": "knots",
    "st": "stone",
    "oz": "ounces",
    "hp": "horsepower",
    "lbf": "pounds-force",
    "hand": "hands",
    "mpgus": "miles per US gallon",
    "mpgimp": "miles per imperial gallon",
    "cuft/s": "cubic feet per second",
    "usgal/min": "US gallons per minute",
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
"""Codes of {{convert}}, in lower case, that are not text themselves; others are (km, kg, mph)."""
_SINGULAR = {"feet": "foot", "inches": "inch"}
_SINGULAR |= {
    name + "s": name for name in ("mile", "pound", "acre", "gallon", "barrel", "yard", "knot", "ounce", "hand")
}
_POWER = re.compile(r"^(?:e(3|6|9|12)(?=\D)|([kMGT])(?=oilbbl|cuft|USgal|impgal))")
_POWERS = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}
_POWERS |= {"k": "thousand", "M": "million", "G": "billion", "T": "trillion"}
_BETWEEN = {"to", "and", "or", "x", "by", "-", "\u2013", "to(-)", "and(-)", "xx", "*", "\u00d7", "+/-", "\u00b1"}
_RANGE = re.compile(r"^([\d.,]+) ?(to|and|or|by|x|-|\u2013) ?([\d.,]+)$")
_FRACTION = re.compile(r"[-\u2212]?(?:\d+[-+])?\d+//?\d+")
_PART = re.compile(r"[-\u2212]?\d+//?\d+")
_MIXED = re.compile(r"(\d)[-+](\d+/\d)")
_EXPONENT = re.compile(r"[-\u2212]?\d")
_SMALL_POWERS = {"1": "", "2": "\u00b2", "3": "\u00b3"}


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


def convert(given: Arguments) -> str:
    """{{convert|10|to|20|km|mi}} -> "10 to 20 km"; {{convert|5|ft|11|in|m}} -> "5 feet 11 inches"."""
    words: list[str] = []
    adjective = given.get("adj", "").startswith("on")
    values = positional(given)
    values = [*_RANGE.sub(r"\1|\2|\3", values[0]).split("|"), *values[1:]] if values else []
    for i, value in enumerate(values):
        after_number = bool(words) and _is_amount(words[-1])
        if _is_amount(value):
            words.append(value if given.get("comma") else _grouped(value))
        elif after_number and value.lower() in _BETWEEN:
            words.append(value.lower())
        elif after_number:
            another = _is_amount("".join(values[i + 1 : i + 2])) and not _is_amount(
                "".join(values[i + 2 : i + 3]) or "0"
            )
            in_range = len(words) > 1 and words[-2] in _BETWEEN
            is_one = words[-1] in ("1", "-1") or _PART.fullmatch(words[-1])
            if not in_range and (adjective or is_one):
                words.append(_singular(_unit(value)).replace(" ", "-" if adjective else " "))
            else:
                words.append(value if adjective else _unit(value))
            if not another:
                break
    if words[-1:] == ["Mach"]:
        words.insert(0, words.pop())
    plain = not any(word in _BETWEEN for word in words)
    joined = ("-" if adjective and plain else " ").join(words)
    joined = re.sub(r" (?:-|\u2013|to\(-\)|and\(-\)) ", "\u2013", joined.replace(" \u00d7 ", " x "))
    return _MIXED.sub(r"\1 \2", joined.replace(" +/- ", " \u00b1 ").replace("//", "/"))


def _is_amount(value: str) -> bool:
    return is_number(value) or _FRACTION.fullmatch(value) is not None


def scientific(given: Arguments) -> str:
    """{{val|1.5|e=6|u=km}} -> "1.5x10^6 km" with the sign of multiplication."""
    power = power_of_ten({"1": given.get("e", "")})
    unit = next((given[key] for key in ("u", "ul") if given.get(key)), "")
    return f"{given.get('1', '')}{power} {unit}".strip()


def power_of_ten(given: Arguments) -> str:
    """{{e|24}} -> "x10^24" with the sign of multiplication, and that of subtraction for a negative power."""
    return "\u00d710^" + given["1"].replace("-", "\u2212") if given.get("1") else ""


def density(given: Arguments) -> str:
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


def gauge(given: Arguments) -> str:
    """{{RailGauge|1435mm}} -> "1,435 mm"; {{RailGauge|4ft8.5in}} -> "4 ft 8.5 in"; any other name as it is."""
    code = given.get("1", "").lower().replace(" ", "")
    if code in ("sg", "standard"):
        return "1,435 mm"
    if not re.fullmatch(r"(?:[\d.]+(?:mm|ft|in|m))+", code):
        return given.get("1", "")
    return _grouped(re.sub(r"([\d.]+)([a-z]+)", r"\1 \2 ", code).strip())


def chemical(given: Arguments) -> str:
    """{{chem|SO|4|2-}} -> "SO42-" with the sign of subtraction for the charge; the hyphen of a bond stays."""
    return "".join(re.sub(r"-(\)?)$", "\u2212\\1", part) for part in positional(given))


def fraction(given: Arguments) -> str:
    """{{frac|3|1|2}} -> "3 1/2", {{frac|2}} -> "1/2"."""
    parts = positional(given)
    whole = parts.pop(0) + " " if len(parts) == 3 else ""
    return whole + ("/".join(parts) if len(parts) > 1 else "1/" + parts[0] if parts else "")


_RANGES = ("et", "ou", "\u00e0", "par", "\u00d7", "\u00b1")


def with_unit(language: str, given: Arguments) -> str:
    """{{unit\u00e9|30000|km|2|h|-1}} -> "30 000 km\u00b2\u22c5h\u22121": a number, then units and their powers.

    An empty argument stands for no power; {{unit\u00e9|5|\u00e0=6|m}} is "5 \u00e0 6 m".
    """
    number, *rest = [*positional(given), ""]
    words = [written(number, language)]
    for word in _RANGES:
        if given.get(word):
            words += [word, written(given[word], language)]
    units: list[str] = []
    for value in filter(None, rest):
        if units and _EXPONENT.fullmatch(value):
            units[-1] += _SMALL_POWERS.get(value, value.replace("-", "\u2212"))
        else:
            units.append(value)
    powers = power_of_ten({"1": given.get("e", "")})
    return " ".join(filter(None, [" ".join(words) + powers, "\u22c5".join(units)]))


def time(given: Arguments) -> str:
    """{{heure|10|30}} -> "10 h 30"."""
    hours, minutes, seconds = [*positional(given), "", "", ""][:3]
    return " ".join(filter(None, [f"{hours} h" if hours else "", minutes, f"min {seconds}" if seconds else ""]))
