"""HTML elements, and angle brackets that are text.

    end a line           block elements, <br>
    leave nothing        what style="display:none" hides, HTML tables, <code> of several lines
    leave their text     all others that MediaWiki or one of its extensions knows: <b>, <kbd>, <span>, <section>
    text                 whatever else looks like a tag: <stdio.h>, List<String>, x<y and y>z

A name that nobody knows is markup only where an end tag closes it; alone it is text, as on the page.
"""

import re
from dataclasses import dataclass

from megatron_alum.data.preprocessing.readers.wikitext.protected import ATTRIBUTES, SEAM

_BREAKING = frozenset(
    "br p div li ul ol dl dt dd tr td th center blockquote poem hr h1 h2 h3 h4 h5 h6 table caption thead tbody"
    " tfoot".split()
)
_NO_TEXT = frozenset({"table", "style", "script"})
EXTENSIONS = frozenset(
    "nowiki noinclude onlyinclude includeonly ref references math chem ce hiero score timeline source syntaxhighlight"
    " imagemap graph mapframe maplink templatedata inputbox section indicator categorytree templatestyles charinsert"
    " langconvert translate tvar languages abschnitt se\u00e7\u00e3o secci\u00f3n quiz phonos dynamicpagelist rss"
    " gallery poem pre".split()
)
"""Elements that MediaWiki's extensions add."""
_KNOWN = (
    _BREAKING
    | EXTENSIONS
    | frozenset(
        "abbr b bdi bdo big cite code data del dfn em font i ins kbd link mark meta q rb rp rt rtc ruby s samp small"
        " span strike strong sub sup time tt u var wbr col colgroup".split()
    )
)
_ONE_LETTER = frozenset("biusqp")
_TAG = re.compile(rf"<(/?)([^\W\d_][^\W_]*)(?=[\s/>])({ATTRIBUTES})")
_HIDDEN = re.compile(r"\bdisplay\s*:\s*none", re.IGNORECASE)


@dataclass(slots=True)
class _Tag:
    start: int
    end: int
    name: str
    closes: bool
    attributes: str
    partner: int = -1
    """index of the end tag of a start tag, or of the start tag of an end tag; -1 for none"""


def without_tags(text: str) -> str:
    """`text` with its elements reduced to text, and every other "<" of a seeming tag as an entity."""
    if "<" not in text:
        return text
    tags = [
        _Tag(match.start(), match.end(), match[2].lower(), bool(match[1]), match[3]) for match in _TAG.finditer(text)
    ]
    _pair(tags)
    pieces: list[str] = []
    position = i = 0
    while i < len(tags):
        tag = tags[i]
        pieces.append(text[position : tag.start])
        position = tag.end
        i += 1
        if _is_text(tag):
            pieces.append("&lt;" + text[tag.start + 1 : tag.end])
            continue
        closing = tag.partner if not tag.closes else -1
        if closing >= 0 and _leaves_nothing(tag, text, tags[closing]):
            pieces.append("\n" if tag.name in _BREAKING or tag.name == "code" else "")
            position = tags[closing].end
            i = closing + 1
        elif tag.name in _BREAKING:
            pieces.append("\n")
        elif text[tag.start - 1 : tag.start] == "'":
            pieces.append(SEAM)  # lest two marks of emphasis become one
    pieces.append(text[position:])
    return "".join(pieces)


def _pair(tags: list[_Tag]) -> None:
    """Give every start tag its end tag: the nearest start of the same name."""
    open_tags: dict[str, list[int]] = {}
    for i, tag in enumerate(tags):
        if not tag.closes:
            if not tag.attributes.endswith("/>"):
                open_tags.setdefault(tag.name, []).append(i)
        elif open_tags.get(tag.name):
            tag.partner = open_tags[tag.name].pop()
            tags[tag.partner].partner = i


def _is_text(tag: _Tag) -> bool:
    if tag.closes:
        return False
    if tag.name in _ONE_LETTER and tag.partner < 0:  # "a<b and c>d"
        words = tag.attributes.rstrip("/>").strip()
        return bool(words) and "=" not in words
    return tag.name not in _KNOWN and tag.partner < 0


def _leaves_nothing(tag: _Tag, text: str, closing: _Tag) -> bool:
    if tag.name in _NO_TEXT or (tag.attributes and _HIDDEN.search(tag.attributes)):
        return True
    return tag.name == "code" and "\n" in text[tag.end : closing.start].strip("\n")
