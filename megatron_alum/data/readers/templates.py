"""The visible text of the templates that stand inside sentences; every other template is removed.

Templates are programs that a dump does not contain, so they cannot be run; but the text of a few hundred common ones
is one of their arguments, or a simple phrase made of them: "{{convert|5|km|mi}}" leaves "5 km", "{{lang|fr|chat}}"
leaves "chat". Without them a tenth of the articles has holes like "an area of , the". What a template computes
(conversions, ages, inflation) and the names of languages are left out; only densities are divided.

`template_text` gives HOLE for a template without text, which tells the cleaner where punctuation may stand alone.
"""

import re
from collections.abc import Callable

HOLE = "\ufdd0"
"""Stands for a removed template until its line is tidied: a code point that Unicode keeps for such use, in no text."""

_PIPE = re.compile(r"\|(?![^\[\]]*\]\])")  # not the one inside [[target|label]]
_NAMED = re.compile(r"^\s*([A-Za-z0-9_ -]+?)\s*=(.*)$", re.DOTALL)
_NUMBER = re.compile(r"^[\d.,/+\u2212\u2013-]+$")
_MONTHS = "January February March April May June July August September October November December".split()

Arguments = dict[str, str]
"""Positional arguments under "1", "2", ..., named ones under their names; all stripped."""


def template_text(content: str) -> str:
    """What a reader of the page sees of {{content}}, whose inner templates are text already; HOLE when nothing."""
    name, *rest = _PIPE.split(content)
    name = name.strip().replace("_", " ").lower()
    if ":" in name:
        function, _, value = name.partition(":")
        return value.strip() if function == "formatnum" else HOLE
    write = TEXT_TEMPLATES.get(name) or _by_prefix(name)
    return (write(_arguments(rest)) if write else "") or HOLE


def _arguments(parts: list[str]) -> Arguments:
    found: Arguments = {}
    position = 0
    for part in (part.replace(HOLE, "") for part in parts):
        named = _NAMED.match(part)
        if named:
            found[named[1].lower()] = named[2].strip()
        else:
            position += 1
            found[str(position)] = part.strip()
    return found


def _by_prefix(name: str) -> Callable[[Arguments], str] | None:
    """{{lang-fr|...}} for any language; pronunciations ({{IPA-fr|...}}) are no text."""
    return _argument("1") if name.startswith("lang-") else None


def _argument(*names: str) -> Callable[[Arguments], str]:
    """The first of these arguments that is given."""
    return lambda given: next((given[name] for name in names if given.get(name)), "")


def _text(text: str) -> Callable[[Arguments], str]:
    return lambda _given: text


def _positional(given: Arguments) -> list[str]:
    values: list[str] = []
    while (key := str(len(values) + 1)) in given:
        values.append(given[key])
    return values


def _joined(between: str = "") -> Callable[[Arguments], str]:
    return lambda given: between.join(_positional(given))


def _last(given: Arguments) -> str:
    """{{transl|ar|ALA|text}}: the text is the last."""
    return (_positional(given) or [""])[-1]


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
    values = _positional(given)
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
    return "".join(re.sub(r"-(\)?)$", "\u2212\\1", part) for part in _positional(given))


def _fraction(given: Arguments) -> str:
    parts = _positional(given)
    whole = parts.pop(0) + " " if len(parts) == 3 else ""
    return whole + ("/".join(parts) if len(parts) > 1 else "1/" + parts[0] if parts else "")


def _date(given: Arguments) -> str:
    """{{birth date|1905|2|20}} -> "February 20, 1905", or "20 February 1905" with df=y; any text as it is."""
    year, month, day = ([*_positional(given), "", "", ""])[:3]
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


def _before(word: str) -> Callable[[Arguments], str]:
    """{{circa|1500|1510}} -> "c. 1500 - c. 1510" with a dash."""
    return lambda given: " \u2013 ".join(f"{word} {value}" for value in _positional(given)) or word


def _nihongo(given: Arguments) -> str:
    """{{nihongo|English|kanji|romaji}} -> "English (kanji, romaji)"."""
    inside = ", ".join(given[key] for key in ("2", "3") if given.get(key))
    return f"{given.get('1', '')} ({inside})".strip() if given.get("1") and inside else given.get("1") or inside


def _ship(prefix: str) -> Callable[[Arguments], str]:
    """{{USS|Nautilus|SSN-571}} -> "USS Nautilus"."""
    return lambda given: f"{prefix} {given['1']}" if given.get("1") else ""


def _element(symbol: str) -> Callable[[Arguments], str]:
    """{{carbon|2}}{{hydrogen|6}} -> "C2H6"."""
    return lambda given: symbol + given.get("1", "")


def _old_style(given: Arguments) -> str:
    """{{OldStyleDate|2 February|1905|20 January}} -> "2 February [O.S. 20 January] 1905"."""
    old = f" [O.S. {given['3']}]" if given.get("3") else ""
    return f"{given.get('1', '')}{old} {given.get('2', '')}".strip()


def _quotation(given: Arguments) -> str:
    """A block of its own; the author under it is left out."""
    text = given.get("text") or given.get("quote") or given.get("1", "")
    return f"\n{text}\n" if text else ""


_ROWS: list[tuple[str, Callable[[Arguments], str]]] = [
    # text set in another way
    (
        "nowrap|nobr|nobreak|nowraplinks|small|smaller|big|larger|midsize|nobold|noitalic|sc|smallcaps|center|centre"
        "|keypress|key press|sup|sub|math|mvar|var|samp|mono|em|strong|linktext|tooltip|abbr|abbrlink|vr|pipe"
        "|unicode|polytonic|hebrew|grc|iast|nts|ill|interlanguage link|visible anchor|vanchor"
        "|flag|flagcountry|flagu",
        _argument("1"),
    ),
    ("resize|color|colour|script|rtl-lang|lang|langx|wikt-lang", _argument("2", "1")),
    ("transl|transliteration", _last),
    ("angbr|angle bracket", lambda given: f"\u27e8{given['1']}\u27e9" if given.get("1") else ""),
    ("sic", lambda given: "".join(_positional(given)) or "[sic]"),
    ("chem|chem2", _chemical),
    ("eqm|nuclide|element", _joined()),
    *((name, _element(name[0].upper())) for name in ("carbon", "hydrogen", "nitrogen", "oxygen")),
    ("quote|blockquote|cquote|quotation|bquote|rquote|centered pull quote|pull quote|poemquote", _quotation),
    # names
    ("nihongo|nihongo2|nihongo3", _nihongo),
    *((name, _ship(name.upper())) for name in ("uss", "hms", "hmas", "hmcs", "rms", "ss", "ms", "mv", "usns", "sms")),
    # numbers and dates
    ("convert|cvt", _convert),
    ("val|gaps", _value),
    ("e", _power_of_ten),
    ("pop density|population density", _density),
    ("railgauge|rail gauge|track gauge", _gauge),
    ("frac|fraction|sfrac", _fraction),
    ("us$|usd", lambda given: f"US${given['1']}" if given.get("1") else ""),
    ("gbp|pound sterling|\u00a3", lambda given: f"\u00a3{given['1']}" if given.get("1") else ""),
    ("euro|eur|\u20ac", lambda given: f"\u20ac{given['1']}" if given.get("1") else ""),
    (
        "birth date|birth-date|birth date and age|birth-date and age|bda|dob|death date|death-date|death date and age"
        "|death-date and age|start date|start-date|start date and age|end date|end-date|film date|dts|date",
        _date,
    ),
    ("as of|asof", _as_of),
    ("circa|c.|ca.|c", _before("c.")),
    ("floruit|fl.", _before("fl.")),
    ("oldstyledate", _old_style),
    # characters
    ("mdash|emdash|em dash|---", _text("\u2014")),
    ("ndash|endash|en dash|--", _text("\u2013")),
    ("snd|spnd|spaced ndash|spaced en dash|sndash", _text(" \u2013 ")),
    ("mdashb|spaced mdash|spaced em dash", _text(" \u2014 ")),
    ("nbsp|space|spaces", _text(" ")),
    ("=", _text("=")),
    ("'", _text("&#39;")),  # entities, lest they join a mark of emphasis
    ("'s", _text("&#39;s")),
    ("' \"", _text('&#39; "')),
    ("\" '", _text('" &#39;')),
    ("dot|\u00b7|bull|bullet", _text(" \u00b7 ")),
    (
        "music",
        lambda given: {"flat": "\u266d", "b": "\u266d", "sharp": "\u266f", "#": "\u266f"}.get(given.get("1", ""), ""),
    ),
]
TEXT_TEMPLATES = {name: write for names, write in _ROWS for name in names.split("|")}
"""Lower-case name -> the text made of its arguments."""
