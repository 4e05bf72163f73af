"""The last step: lines of wikitext without brackets and tags become lines of text.

Headings stay when text follows them, list marks go, apostrophes are emphasis or text by MediaWiki's rule, entities are
resolved, and what removed markup leaves behind is tidied: "(; born 1990)", "Paris ()", "such as , and". Every pattern
here takes time in proportion to the line, however long its runs of one character.
"""

import html
import re
import string
from collections.abc import Iterator

from megatron_alum.data.preprocessing.readers.wikitext.brackets import OPEN_FILE, OPEN_LINK, OPEN_TEMPLATE
from megatron_alum.data.preprocessing.readers.wikitext.protected import HOLE, SEAM
from megatron_alum.data.preprocessing.readers.wikitext.templates import MAYBE, MAYBE_END
from megatron_alum.data.preprocessing.readers.wikitext.wiki import magic

_SCHEMES = (
    "bitcoin:|ftps?://|geo:|git://|gopher://|https?:(?://)?|ircs?:(?://)?|magnet:|mailto:|matrix:|mms://|news:|nntp://"
    "|redis://|sftp://|sips?:|sms:|ssh://|svn://|tel:|telnet://|urn:|worldwind://|xmpp:|//"
)
_EXTERNAL = re.compile(rf"\[(?:{_SCHEMES})[^\s\[\]<>\"]+[ \t\u00a0]*", re.IGNORECASE)
_EMPHASIS = re.compile(r"''+")
_SWITCH = re.compile(r"(?:__|\uff3f\uff3f)([^\s_\uff3f](?:[^\n]{0,60}?[^\n_\uff3f])??)(?:__|\uff3f\uff3f)")
_LIST_MARK = re.compile(r"^[*#:;]+\s*")
_SPACES = re.compile(r"[ \t]{2,}")
_MAYBE_EMPTY = re.compile(r"[(\uff08][\s,;:/\u2013\u3001\uff0c\uff1b)\uff09-]")
_EMPTY_BRACKETS = re.compile(r" ?[(\uff08][\s,;:/\u2013\u3001\uff0c\uff1b-]*[)\uff09]")
_NO_AMOUNT = re.compile(  # "($ in dollars)", what is left when a template computed the amount and the year
    rf" ?\((?=[^()]*{HOLE})(?:[\s{HOLE}$\u00a3\u20ac\u00a5,.;:]|&nbsp;|\b(?:US|USD|GBP|AUD|CAD|[AC](?=\$)|about"
    r"|around|approximately|roughly|nearly|over|equivalent|equal|worth|adjusted|inflation|inflated|today's|today"
    r"|present-day|now|current|value|terms|money|dollars|pounds|euros|prices|million"
    r"|billion|to|in|as|of|or|for|the|at|with)\b)*\)"
)
_BRACKET_HEAD = re.compile(r"([(\uff08])[\s,;:\u3001\uff0c\uff1b]+")
_BRACKET_TAIL = re.compile(r"(?<![\s,;:\u3001\uff0c\uff1b])[\s,;:\u3001\uff0c\uff1b]++([)\uff09])")
_HOLES = re.compile(rf"{HOLE}(?: ?{HOLE})+")
_LONE_SEPARATORS = re.compile(rf"([,;:])(?: ?{HOLE} ?[,;:])+|(\.) ?{HOLE} ?\.(?!\.)")
_AFTER_HOLE = frozenset(",.;:)")
_EDGES = HOLE + string.whitespace
_SIGN = re.compile(f"[{MAYBE}{MAYBE_END}{OPEN_TEMPLATE}{OPEN_LINK}{OPEN_FILE}]")
_MAYBE = re.compile(f"{MAYBE}([^{MAYBE}{MAYBE_END}]*){MAYBE_END}")
_NESTED_SIGNS = re.compile(f"[{MAYBE}{MAYBE_END}]")
_OPEN_LINK = re.compile(rf"{OPEN_LINK}(?:[^|{OPEN_LINK}]*\|)?")
_PAIRS = re.compile(r"\[\[+|\]\]+|\{\{+|\}\}+")
_BRACKET_RUN = re.compile(r"[\[\]{}]{2,}")
_STRAY = re.compile(r"\|\s*thumb(?:nail)?\b|</", re.IGNORECASE)
_STOPS = ".!?\u3002\uff01\uff1f\u2026"
_LEADS = "([{\"'\u2018\u201c\u00ab\u201e/\u2013\u2014-\u2019+=~\u00d7&;"
_SWITCHES = magic("switch")
MAX_HEADING = 6


def prose_lines(text: str) -> Iterator[str]:
    """Lines of text; a heading only when text follows before the next one of its level."""
    headings: list[tuple[int, str]] = []
    for line in _without_rows(text.split("\n")):
        level, title = _heading(line)
        if level:
            headings = [(depth, title) for depth, title in headings if depth < level]
            headings.append((level, _inline(title)))
            continue
        line = _inline(_LIST_MARK.sub("", line))
        if not any(character.isalnum() for character in line):
            continue
        yield from (title for _level, title in headings if title)
        headings.clear()
        yield line


def _without_rows(raw: list[str]) -> Iterator[str]:
    """Lines but for rules and the rows of tables that templates open or nobody closes.

    A line that begins with "!" is a row inside an open table, or beside one that begins with "|", other headers between
    them: else it is text.
    """
    lines = [line.strip(_EDGES) for line in raw]
    row_follows = [False] * (len(lines) + 1)
    for i in reversed(range(len(lines))):
        row_follows[i] = lines[i].startswith("|") or (lines[i].startswith("!") and row_follows[i + 1])
    in_table = row_before = False
    for i, line in enumerate(lines):
        if not line:
            continue
        next_is_row = row_follows[i + 1]
        is_row = line[0] == "|" or line.startswith("{|")
        if line[0] == "!":
            is_row = in_table or row_before or next_is_row
        if line[0] == OPEN_TEMPLATE and next_is_row:  # the name of a box that is never closed
            is_row = True
        in_table = (in_table or line.startswith("{|")) and not line.startswith("|}")
        row_before = is_row and not line.startswith("|}")
        if not is_row and not line.startswith("----"):
            yield line


def _heading(line: str) -> tuple[int, str]:
    """(level, title) of "== Title ==", else (0, "")."""
    if line[0] != "=" or line[-1] != "=" or len(line) < 3:
        return 0, ""
    before, after = len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("="))
    level = min(before, after, MAX_HEADING)
    if before == len(line):  # a line of signs alone
        return 0, ""
    return level, line[level:-level].strip()


def _inline(line: str) -> str:
    """One line as text."""
    if "  " in line or "\t" in line:
        line = _SPACES.sub(" ", line)
    if _SIGN.search(line):
        line = _without_signs(line)
    if "[" in line:
        line = _without_external_links(line)
    if "''" in line:
        line = _without_emphasis(line)
    if "__" in line or "\uff3f\uff3f" in line:
        line = _SWITCH.sub(lambda found: "" if found[1].lower() in _SWITCHES else found[0], line)
    return _tidy(line)


def _without_external_links(line: str) -> str:
    """[url label] is its label, [url] nothing."""
    pieces: list[str] = []
    position = 0
    while found := _EXTERNAL.search(line, position):
        end = line.find("]", found.end())
        if end < 0:
            break
        pieces += [line[position : found.start()], line[found.end() : end]]
        position = end + 1
    return "".join([*pieces, line[position:]])


def _without_signs(line: str) -> str:
    """Unclosed brackets become words, and templates that no table knows text or nothing."""
    line = line.partition(OPEN_FILE)[0]
    line = _OPEN_LINK.sub("", line)
    if OPEN_TEMPLATE in line:
        before, _, after = line.partition(OPEN_TEMPLATE)
        line = before + after.replace(OPEN_TEMPLATE, "").replace("|", " ")
    if MAYBE not in line:
        return line
    words = _MAYBE.sub("", line)
    if not any(character.isalpha() for character in words):
        return _NESTED_SIGNS.sub("", _MAYBE.sub(HOLE, line))
    return _NESTED_SIGNS.sub("", _MAYBE.sub(lambda found: found[1] if _in_sentence(found) else HOLE, line))


def _in_sentence(found: re.Match[str]) -> bool:
    """Whether a template stands where a word of its line would.

    At the start of a sentence the sentence must go on behind it in small letters; what hangs on a word or a stop
    without a space is a note.
    """
    line = found.string
    before = line[max(0, found.start() - 3) : found.start()].rstrip(HOLE + MAYBE_END)
    after = line[found.end() : found.end() + 3].lstrip(HOLE + MAYBE)
    stop = before.rstrip()[-1:]
    if not stop or stop in _STOPS:
        follows = after.lstrip()[:1]
        return bool(follows) and (follows in ",'\u2019(-" or (follows.isalpha() and not follows.isupper()))
    if before[-1].isspace() or before[-1] in _LEADS:
        return True
    return ord(before[-1]) >= 0x2E80 or before[-1] in "\u201d\u00bb"  # no spaces between words


def _without_emphasis(line: str) -> str:
    """`line` without its runs of apostrophes, but with those that are text by MediaWiki's rule.

    Of four and of more than five, the surplus is text. When both the italic and the bold marks are odd in number, one
    bold mark is an apostrophe and an italic one: "''Iliad'''s" -> "Iliad's".
    """
    runs = list(_EMPHASIS.finditer(line))
    marks = [3 if len(run[0]) == 4 else min(len(run[0]), 5) for run in runs]
    texts = [len(run[0]) - mark for run, mark in zip(runs, marks, strict=True)]
    if sum(mark != 3 for mark in marks) % 2 and sum(mark != 2 for mark in marks) % 2:
        ranked = [
            (_rank(line[max(0, run.start() - 2) : run.start()] + "'" * texts[i]), i)
            for i, run in enumerate(runs)
            if marks[i] == 3
        ]
        if ranked:
            texts[min(ranked)[1]] += 1
    counts = iter(texts)
    return _EMPHASIS.sub(lambda _run: "'" * next(counts), line)


def _rank(before: str) -> int:
    """Which bold mark is the false one: first one after a word of one letter, else of more, else after a space."""
    return 2 if before.endswith(" ") else 0 if before[-2:-1] == " " else 1


def _without_holes(line: str) -> str:
    """`line` without the signs of removed markup, and without the space before one that a stop follows."""
    pieces = line.split(HOLE)
    for i, piece in enumerate(pieces[1:]):
        if piece.removeprefix(" ")[:1] in _AFTER_HOLE:
            pieces[i] = pieces[i].removesuffix(" ")
    return "".join(pieces)


def _tidy(line: str) -> str:
    """Entities resolved, the empty brackets and lone separators of removed templates gone."""
    if HOLE in line:
        if "(" in line:
            line = _NO_AMOUNT.sub("", line)
        line = _without_holes(_LONE_SEPARATORS.sub(r"\1\2", _HOLES.sub(HOLE, line)))
        if ")" in line or "\uff09" in line:
            line = _BRACKET_TAIL.sub(r"\1", line)
    if _MAYBE_EMPTY.search(line):
        line = _BRACKET_HEAD.sub(r"\1", _EMPTY_BRACKETS.sub("", line))
    if _PAIRS.search(line):
        line = _PAIRS.sub("", line)
        if _PAIRS.search(line):  # "[{{[" left another pair
            line = _BRACKET_RUN.sub("", line)
    if "<" in line or "|" in line:
        line = _STRAY.sub(" ", line)
    line = line.replace(SEAM, "")
    return (html.unescape(line).replace("\n", " ") if "&" in line else line).strip()
