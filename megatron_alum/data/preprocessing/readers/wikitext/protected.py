"""Stretches of a page that no later step may look into: comments, <nowiki>, code, references, formulas.

MediaWiki takes these out before it looks for templates or links, in the order in which they begin: a "<!--" inside
<nowiki> is text, a </ref> inside a comment is none. Here, too, one scan from left to right decides. Comments,
references, formulas, galleries and blocks of code go; <nowiki> and inline code stay, with every character of markup
as an entity, which the last step turns back. On the page itself <includeonly> is nothing, and <noinclude> and
<onlyinclude> are only tags.

An unclosed comment reaches to the end of the page, as MediaWiki shows it; an unclosed element is no element.
"""

import html
import re

HOLE = "\ufdd0"
"""Stands for removed markup until its line is tidied: a code point that Unicode keeps for such use, in no text."""
SEAM = "\ufdd1"
"""Stands for an empty <nowiki/>: nothing, but it keeps apart what is beside it."""

_VALUE = r"\s*=\s*(?:\"[^\"]{0,2000}\"|'[^']{0,2000}'|[^\s\"'<>=]+)"
ATTRIBUTES = rf"(?:(?:\s+[^\s\"'<>/=]+(?:{_VALUE})?)*+\s*/?>|[^<>]*>)"
"""The rest of a tag behind its name: attributes, quoted ones with any character, and the bracket; else up to ">"."""
_BLOCKS = (
    "gallery|timeline|score|source|syntaxhighlight|imagemap|graph|mapframe|templatedata|references|inputbox|pre"
    "|categorytree|quiz|dynamicpagelist"
)
_INLINE = "ref|math|chem|ce|hiero|maplink|indicator|templatestyles|charinsert|langconvert|nowiki|includeonly|phonos"
_OPENING = re.compile(
    rf"<(?:(!--)|(/?(?:noinclude|onlyinclude)|/includeonly|({_BLOCKS}|{_INLINE}))(?=[\s/>]){ATTRIBUTES})", re.IGNORECASE
)
_CLOSING = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in f"{_BLOCKS}|{_INLINE}".split("|")}
_IS_BLOCK = frozenset(_BLOCKS.split("|"))
_INLINE_CODE = re.compile(r"\sinline\b|\senclose\s*=\s*[\"']?none", re.IGNORECASE)
_MARKUP = re.compile(r"[^\w\s]")


def protect(source: str) -> str:
    """`source` without comments and elements that hold no prose, and with <nowiki> and inline code as entities."""
    pieces: list[str] = []
    position = 0
    unclosed: set[str] = set()
    while found := _OPENING.search(source, position):
        pieces.append(source[position : found.start()])
        position = found.end()
        name = (found[3] or "").lower()
        if found[1]:
            end = source.find("-->", position)
            position = end + 3 if end >= 0 else len(source)
        elif not name or name in unclosed:
            continue  # an unclosed element: its tag is no text, what follows is
        elif found[0].endswith("/>"):
            pieces.append(SEAM if name == "nowiki" else _nothing(name))
        elif closing := _CLOSING[name].search(source, position):
            pieces.append(_element(name, found[0], source[position : closing.start()]))
            position = closing.end()
        elif name == "includeonly":
            position = len(source)
        else:
            unclosed.add(name)
    pieces.append(source[position:])
    return "".join(pieces)


def _element(name: str, tag: str, content: str) -> str:
    """What an element leaves."""
    if name == "nowiki":
        return escaped(html.unescape(content)) or SEAM
    if name in ("source", "syntaxhighlight") and _INLINE_CODE.search(tag):
        return escaped(content.strip())
    if name == "includeonly":
        return ""
    return _nothing(name)


def _nothing(name: str) -> str:
    return "\n" if name in _IS_BLOCK else HOLE


def escaped(text: str) -> str:
    """`text` with every character of markup as an entity."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", text)
