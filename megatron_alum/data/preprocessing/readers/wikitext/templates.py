"""What a template leaves on the page, as far as a dump can tell.

Templates are programs that a dump does not contain, so they cannot be run; but the text of the common ones is one of
their arguments, or a phrase made of them: "{{convert|5|km|mi}}" leaves "5 km", "{{lang|fr|chat}}" leaves "chat". The
table templates.tsv lists those of the larger wikis, and the ones that leave nothing (notes, pronunciations, flags,
what is computed). Without them a tenth of the articles have holes like "an area of , the".

A template that no table knows leaves its readable arguments, but only where the line shows that it stands inside a
sentence (lines.py decides: they come between two signs). What might be a false fact leaves nothing: numbers alone may
be the input of a computation, "{{age|1990|1|1}}".
"""

import re

from megatron_alum.data.preprocessing.readers.wikitext.numbers import Arguments, is_number, positional, written
from megatron_alum.data.preprocessing.readers.wikitext.protected import HOLE, escaped
from megatron_alum.data.preprocessing.readers.wikitext.wiki import Wiki, fold, magic
from megatron_alum.data.preprocessing.readers.wikitext.writers import Writer, nothing

MAYBE, MAYBE_END = "\ufdd2", "\ufdd3"
"""Surround the text of a template that no table knows: text inside a sentence, nothing elsewhere."""
MAX_UNKNOWN_CHARS = 200
"""A longer unknown template is a note or a box."""

_NAME = re.compile(r"\s*([\w][\w .'/-]{0,60}?)\s*")
_PREFIXES = frozenset({"subst", "safesubst", "msg", "msgnw", "raw"})
_UNIT = re.compile(
    r"(?:[kcmn\u03bc\u00b5dh]?m|[km\u00b5\u03bc]?g|ha|km/h|m/s|[kMGT]?W|[kM]?Hz|t|l|ml|\u00b0C?|%|\u20ac|\$)[\u00b2\u00b323]?"
)
_ROMAN = re.compile(r"[IVXLCDM]+")
_ORDINAL_ENDINGS = frozenset({"e", "er", "re", "\u00e8me", "\u00ba", "\u00aa", "o", "a", "th", "st", "nd", "rd"})
_WORD = re.compile(r"[^\W\d_]{3,}|[^\W\d_\u0000-\u02ff]")
_NO_TEXT = re.compile(r"[<>\[\]{}#]|https?:|\.(?:jpe?g|png|svg|gif|og[ga]|wav|mp3|webm)\b", re.IGNORECASE)


def template_text(content: str, wiki: Wiki, title: str = "") -> str:
    """What a reader of the page sees of {{content}}, whose inner templates are text already; HOLE when nothing."""
    head, *rest = content.split("|")
    name = fold(head.replace(HOLE, ""))
    while ":" in name:
        function, _, name = name.partition(":")
        if function.strip() not in _PREFIXES and function.strip() not in wiki.template:
            return _function(function.strip(), head.partition(":")[2].strip(), rest, wiki.language)
        name = name.strip()
    write = wiki.templates.get(head) or wiki.templates.get(name) or _family(name, wiki)
    if write is nothing:
        return HOLE
    if write is not None:
        return write(arguments(rest)) or HOLE
    if any(pattern.fullmatch(name) for pattern in wiki.own_text):
        return " ".join(head.split())
    if not rest:
        return (escaped(title) or HOLE) if name in _TITLE else HOLE
    if len(content) > MAX_UNKNOWN_CHARS or "\n" in content.strip():
        return HOLE
    readable = _readable(arguments(rest))
    return f"{MAYBE}{readable}{MAYBE_END}" if readable else HOLE


def _family(name: str, wiki: Wiki) -> Writer | None:
    if not name.startswith(wiki.prefixes):
        return None
    return next(write for prefix, write in wiki.families.items() if name.startswith(prefix))


def _function(name: str, value: str, rest: list[str], language: str) -> str:
    """Parser functions that give text."""
    if name in _FORMAT_NUMBER:
        return value if rest else written(value, language)  # "|R" and "|NOSEP" ask for no signs
    if name in ("lc", "uc", "lcfirst", "ucfirst"):
        change = str.lower if name.startswith("lc") else str.upper
        return change(value) if len(name) == 2 else change(value[:1]) + value[1:]
    if name == "#if":
        chosen = rest[:1] if value.replace(HOLE, "").strip() else rest[1:2]
        return "".join(chosen).strip() or HOLE
    return HOLE


def arguments(parts: list[str]) -> Arguments:
    """Positional arguments under "1", "2", ..., named ones under their names in lower case; all stripped."""
    found: Arguments = {}
    position = 0
    for part in (part.replace(HOLE, "") for part in parts):
        name, equals, value = part.partition("=")
        named = _NAME.fullmatch(name) if equals else None
        if named:
            found[named[1].lower()] = value.strip()
        else:
            position += 1
            found[str(position)] = part.strip()
    return found


def _readable(given: Arguments) -> str:
    """The arguments of an unknown template that a reader probably sees: words, a number with its unit, a century."""
    values = [value.replace(MAYBE, "").replace(MAYBE_END, "") for value in positional(given)]
    values = [value for value in values if value]
    if not values or any(_NO_TEXT.search(value) for value in values):
        return ""
    if len(values) > 1 and is_number(values[0]) and _UNIT.fullmatch(values[1]):
        return f"{values[0]} {values[1]}"
    if _ROMAN.fullmatch(values[0]):
        ordinal = values[1] if len(values) > 1 and values[1] in _ORDINAL_ENDINGS else ""
        return values[0] + ordinal
    if not any(map(is_number, values)):
        values = _without_codes(values)
    if len(values) > 1 and not is_number(values[0]) and _same_word(values[0], values[1]):
        values = values[1:2]  # a link and its label
    return " ".join(values) if any(map(_WORD.search, values)) else ""


def _without_codes(values: list[str]) -> list[str]:
    """A language and what follows it is the page in another wiki; at the start, what follows is the text."""
    for i, value in enumerate(values):
        is_last = i == len(values) - 1  # "alt" and "war" are codes, and words
        if value in _LANGUAGES and len(values) > 1 and (len(value) == 2 or not is_last):
            return values[:i] or values[1:]
    return values


def _same_word(link: str, label: str) -> bool:
    return link[:4].lower() == label[:4].lower()


_TITLE = magic("title")
_FORMAT_NUMBER = magic("formatnum")
_LANGUAGES = magic("interlanguage")
