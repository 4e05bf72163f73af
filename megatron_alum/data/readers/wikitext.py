"""MediaWiki markup to plain text in one pass over the brackets and a fixed list of substitutions.

    Removed with their contents   comments, most {{templates}}, {| tables |}, <ref>, <math>, <gallery>, code and
                                  other elements that hold no prose, [[File:...]], [[Category:...]], links to other
                                  languages, __WORDS__
    Reduced to their text         {{convert|5|km}}, {{lang|fr|chat}} and their like (templates.py), [[target|label]],
                                  [url label], ''emphasis'', inline HTML elements, entities
    Kept as text                  exponents of units and numbers ("10^18"), apostrophes that are no emphasis
    A line of its own             headings (dropped when nothing follows them), list items, block elements, <br>

What is not balanced stays as text: an unclosed {{ never swallows the rest of an article. Templates are not expanded;
templates.py says which leave text. Brackets and punctuation that the others leave alone are tidied.

`clean_wikitext` is checked against mwparserfromhell (`clean_by_parser`) on real articles: see tests.
"""

import html
import re
import string
from collections.abc import Iterator

from megatron_alum.data.readers.templates import HOLE, template_text

NO_PROSE = (
    "ref|math|chem|gallery|timeline|score|source|syntaxhighlight|imagemap|graph|mapframe|maplink|templatedata|table|"
    "references|hiero|inputbox|ce|pre|code|section|indicator|categorytree|noinclude|templatestyles"
)
_SELF_CLOSED = re.compile(rf"<(?:{NO_PROSE})\b[^<>]*/>", re.IGNORECASE)
_ELEMENT = re.compile(rf"<({NO_PROSE})\b[^<>]*(?<!/)>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_NOWIKI = re.compile(r"<nowiki>(.*?)</nowiki>|<nowiki\s*/>", re.IGNORECASE | re.DOTALL)
_BRACKET = re.compile(r"\{\{|\}\}|(?:^|\n)[ \t:*#]*\{\||\n[ \t]*\|\}(?!\})|(?<=\n)\|\}(?!\})")
# A label may hold single brackets: "[1.1.0]", "[http://... x]".
_LINK = re.compile(r"\[\[([^\[\]|]*)(?:\|([^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*))?\]\]")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:|irc:|news:)?//[^\s\]]+[ \t]*([^\]\n]*)\]")
_BREAK = re.compile(
    r"</?(?:br|p|div|li|ul|ol|dl|dt|dd|tr|td|th|center|blockquote|poem|hr|h[1-6]|onlyinclude)\b[^<>]*>", re.IGNORECASE
)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_EMPHASIS = re.compile(r"''+")
_BLOCK_IMAGE = frozenset("thumb thumbnail frame framed left right center centre none".split())
# An exponent, and the unit of length before it: "km<sup>2</sup>", "[[metre|m]]<sup>3</sup>", "10<sup>-18</sup>".
_EXPONENT = re.compile(r"(?:<[Ss][Uu][Pp]>|\{\{[Ss]up\|)\s*(-|\u2212|&minus;)?(\d+)\s*(?:</[Ss][Uu][Pp]>|\}\})")
_ENDS_IN_UNIT = re.compile(r"(?:^|[^A-Za-z])(?:km|m|cm|mm|mi|ft)(?:\]\])?$")
_MAGIC = re.compile(r"__[A-Z]+__")
_HEADING = re.compile(r"^(={1,6})\s*(.*?)\s*\1\s*$")
_LIST_MARK = re.compile(r"^[*#:;]+\s*")
_LANGUAGE_LINK = re.compile(r"^[a-z]{2,3}(?:-[a-z-]+)?:")
# What a removed template leaves: "(; born 1990)", "( )", "Paris ()", "(Akhilleus, )", "such as , and", "word ."
_EMPTY_BRACKETS = re.compile(r"[ \t]*\((?:[\s,;:/\u2013-])*\)")
_NO_AMOUNT = re.compile(  # "($ in dollars)", what is left when a template computed the amount and the year
    rf"[ \t]*\((?=[^()]*{HOLE})(?:[\s{HOLE}$\u00a3\u20ac\u00a5,.;:]|&nbsp;|\b(?:US|USD|GBP|AUD|CAD|[AC](?=\$)|about"
    r"|around|approximately|roughly|nearly|over|equivalent|equal|worth|adjusted|inflation|inflated|today's|today"
    r"|present-day|now|current|value|terms|money|dollars|pounds|euros|prices|million"
    r"|billion|to|in|as|of|or|for|the|at|with)\b)*\)"
)
_BRACKET_HEAD = re.compile(r"\([\s,;:]+")
_BRACKET_TAIL = re.compile(r"[\s,;:]+\)")
_LONE_SEPARATORS = re.compile(rf"([,;:])(?:\s*{HOLE}+\s*[,;:])+|(\.)\s*{HOLE}+\s*\.(?!\.)")
_HOLE_BEFORE_STOP = re.compile(rf"\s*{HOLE}+(?=[\s{HOLE}]*[,.;:)])")
_EDGES = HOLE + string.whitespace
_DEFAULT_DROPPED = frozenset({"file", "image", "category", "media"})
MAX_LINK_DEPTH = 5
"""Links inside file captions inside links: real articles have two levels."""


def clean_wikitext(source: str, dropped_namespaces: frozenset[str] = _DEFAULT_DROPPED) -> str:
    """Plain text of `source`, one paragraph, heading or list item a line; links into `dropped_namespaces` go."""
    text = _EXPONENT.sub(_exponent, _COMMENT.sub("", source))
    text = _NOWIKI.sub(lambda match: _escaped(match[1] or ""), text)
    text = _ELEMENT.sub(HOLE, _SELF_CLOSED.sub(HOLE, text))
    text = _without_brackets(text)
    for _depth in range(MAX_LINK_DEPTH):
        reduced = _LINK.sub(lambda match: _link_text(match, dropped_namespaces), text)
        if reduced == text:
            break
        text = reduced
    text = _EXTERNAL.sub(r"\1", text)
    text = "\n".join(_without_emphasis(line) if "''" in line else line for line in text.split("\n"))
    text = _TAG.sub("", _BREAK.sub("\n", text))
    return "\n".join(prose_lines(_MAGIC.sub("", text)))


def _exponent(match: re.Match[str]) -> str:
    """Exponents of units and numbers as text, which would lose their meaning with their tags: "1018" is not 10^18."""
    before = match.string[max(0, match.start() - len("-km]]")) : match.start()]
    sign, power = match[1], match[2]
    if before[-1:].isdecimal():
        return "^" + ("\u2212" if sign else "") + power
    if power in ("2", "3") and not sign and _ENDS_IN_UNIT.search(before):
        return "\u00b2" if power == "2" else "\u00b3"
    return match[0]


def _without_emphasis(line: str) -> str:
    """`line` without its runs of apostrophes, but with those that are text by MediaWiki's rule.

    Of four and of more than five, the surplus is text. When both the italic and the bold marks are odd in number, one
    bold mark is an apostrophe and an italic one: "''Iliad'''s" -> "Iliad's".
    """
    runs = list(_EMPHASIS.finditer(line))
    marks = [3 if len(run[0]) == 4 else min(len(run[0]), 5) for run in runs]
    texts = [len(run[0]) - mark for run, mark in zip(runs, marks, strict=True)]
    if sum(mark != 3 for mark in marks) % 2 and sum(mark != 2 for mark in marks) % 2:
        ranked = [(_rank(line[: run.start()] + "'" * texts[i]), i) for i, run in enumerate(runs) if marks[i] == 3]
        if ranked:
            texts[min(ranked)[1]] += 1
    counts = iter(texts)
    return _EMPHASIS.sub(lambda _run: "'" * next(counts), line)


def _rank(before: str) -> int:
    """Which bold mark is the false one: first one after a word of one letter, else of more, else after a space."""
    return 2 if before.endswith(" ") else 0 if before[-2:-1] == " " else 1


def _escaped(text: str) -> str:
    """`text` with every markup character as an entity, which the last step turns back."""
    return re.sub(r"[^\w\s]", lambda match: f"&#{ord(match[0])};", text)


def _without_brackets(text: str) -> str:
    """`text` with templates replaced by their text, the innermost first, and tables removed."""
    frames: list[tuple[str, list[str]]] = [("", [])]  # what is open: mark, and pieces of text since
    position = 0
    for match in _BRACKET.finditer(text):
        mark = match[0].lstrip()
        if mark.endswith(("{{", "{|")):
            frames[-1][1].append(text[position : match.end() - 2])
            frames.append((mark[-2:], []))
            position = match.end()
            continue
        wanted = "{{" if mark == "}}" else "{|"
        depth = next((i for i in range(len(frames) - 1, 0, -1) if frames[i][0] == wanted), 0)
        if depth == 0:
            continue
        frames[-1][1].append(text[position : match.start()])
        _unclose(frames, depth)
        _mark, pieces = frames.pop()
        frames[-1][1].append(template_text("".join(pieces)) if wanted == "{{" else "")
        position = match.end()
    frames[-1][1].append(text[position:])
    _unclose(frames, 0)
    return "".join(frames[0][1])


def _unclose(frames: list[tuple[str, list[str]]], depth: int) -> None:
    """What was opened above frame `depth` and never closed is text."""
    while len(frames) - 1 > depth:
        mark, pieces = frames.pop()
        frames[-1][1].extend([mark, *pieces])


def _link_text(match: re.Match[str], dropped: frozenset[str]) -> str:
    target, label = match[1].strip(), match[2]
    if target.startswith(":"):
        target = target[1:]
    elif ":" in target and target.split(":")[0].strip().lower() in dropped:
        return _dropped_link(label or "")
    elif _LANGUAGE_LINK.match(target):
        return ""
    if label is None:
        return target
    return label if label.strip() else re.sub(r"\s*\([^()]*\)$", "", target)  # the pipe trick hides the qualifier


def _dropped_link(label: str) -> str:
    """What an image leaves: one beside the text ends the paragraph, as on the page; a symbol in the line is a space."""
    options = {option.strip().lower() for option in label.split("|")}
    return " " + HOLE if options.isdisjoint(_BLOCK_IMAGE) else "\n"


def prose_lines(text: str) -> Iterator[str]:
    """Lines of text without list marks, entities resolved, headings kept only when text follows before the next one."""
    headings: list[tuple[int, str]] = []
    for raw in text.split("\n"):
        line = raw.strip(_EDGES)
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            headings = [(depth, title) for depth, title in headings if depth < level]
            headings.append((level, _tidy(heading[2])))
            continue
        if line.startswith(("|", "!", "{|", "----")):  # rows of a table that was never closed
            continue
        line = _tidy(_LIST_MARK.sub("", line))
        if not any(character.isalnum() for character in line):
            continue
        yield from (title for _level, title in headings if title)
        headings.clear()
        yield line


def _tidy(line: str) -> str:
    """Entities resolved, the empty brackets and lone separators of removed templates gone."""
    if HOLE in line:
        line = _NO_AMOUNT.sub("", line)
        line = _HOLE_BEFORE_STOP.sub("", _LONE_SEPARATORS.sub(r"\1\2", line)).replace(HOLE, "")
        line = _BRACKET_TAIL.sub(")", line)
    if "(" in line:
        line = _BRACKET_HEAD.sub("(", _EMPTY_BRACKETS.sub("", line))
    return (html.unescape(line).replace("\n", " ") if "&" in line else line).strip()


def clean_by_parser(source: str, dropped_namespaces: frozenset[str] = _DEFAULT_DROPPED) -> str:
    """The same by mwparserfromhell: a full parser, about ten times slower, and the check on the fast one."""
    import mwparserfromhell

    code = mwparserfromhell.parse(_EXPONENT.sub(_exponent, source), skip_style_tags=False)
    no_prose = set(NO_PROSE.split("|"))
    for tag in code.filter_tags(recursive=True):
        if str(tag.tag).strip().lower() in no_prose:
            _replace(code, tag, HOLE)
        elif str(tag.tag).strip().lower() == "br":
            _replace(code, tag, "\n")
    for template in reversed(code.filter_templates(recursive=True)):  # the innermost first
        _replace(code, template, template_text(str(template)[2:-2]))
    for link in code.filter_wikilinks(recursive=True):
        namespace = str(link.title).split(":")[0].strip().lower() if ":" in str(link.title) else ""
        if namespace in dropped_namespaces:
            _replace(code, link, _dropped_link(str(link.text or "")))
        elif namespace and _LANGUAGE_LINK.match(str(link.title).strip()):
            _replace(code, link, "")
    for heading in code.filter_headings():
        _replace(code, heading, f"\n{'=' * heading.level} {heading.title.strip_code()} {'=' * heading.level}\n")
    text = code.strip_code(normalize=True, collapse=True)
    return "\n".join(prose_lines(_MAGIC.sub("", text)))


def _replace(code: object, node: object, text: str) -> None:
    """Replace a node unless an outer one took it away before."""
    try:
        code.replace(node, text)  # type: ignore[attr-defined]
    except ValueError:
        return
