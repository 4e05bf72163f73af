"""Templates, parameters, links, tables and variants in one pass over their brackets, the innermost first.

What is open stands on a stack; a closing mark closes the nearest of its kind, and what was opened above it and never
closed is text. So an unclosed {{ never swallows the rest of an article, and the time is linear: every piece of text
moves up once when its bracket closes, and what lies deeper than MAX_DEPTH leaves nothing.

Marks that cannot be paired stand in no sentence: they become one of the signs below, which lines.py takes out.
"""

import re

from megatron_alum.data.preprocessing.readers.wikitext.protected import HOLE
from megatron_alum.data.preprocessing.readers.wikitext.templates import template_text
from megatron_alum.data.preprocessing.readers.wikitext.wiki import Wiki, fold, magic

OPEN_TEMPLATE, OPEN_LINK, OPEN_FILE = "\ufdd4", "\ufdd5", "\ufdd6"
"""Stand for a {{, a [[ and a [[File: that nothing closes."""
MAX_DEPTH = 40
"""Brackets within brackets that still leave text; MediaWiki itself expands templates 40 deep."""

_PLAIN_LINK = re.compile(r"\[\[([^\[\]{}|\n]*+)(?:\|([^\[\]{}|\n]*+))?\]\]")
_TOKENS = r"\{\{+|\}\}+|\[\[|\]\]+|\n[ \t:*#]*+\{\|(?!\})|\n[ \t]*+\|\}(?!\})"
_TOKEN = re.compile(_TOKENS)
_TOKEN_OR_VARIANT = re.compile(_TOKENS + r"|-\{(?!\{)|\}-")
_VARIANT_LANGUAGES = frozenset("zh sr kk ku iu gan crh shi tg uz ban sh wuu zgh mni tly".split()) | {""}
_RULE_BREAK = re.compile(r";(?=\s*(?:[a-z][a-z-]*\s*:|[^;]*=>|$))")
_RULE = re.compile(r"^(?:.*=>)?\s*([a-z][a-z-]*)\s*:(.*)$", re.DOTALL)
_PREFERRED = ("zh-hans", "zh-cn", "zh-sg", "zh-my", "zh")
_HIDING_FLAGS = frozenset("TH-")
_FLAG_LETTERS = frozenset("ASTRDNH-+")


class _Frame:
    """What is open: its kind ("{", "[", "|" or "-"), the mark as it stands in the text, and the text since."""

    __slots__ = ("braces", "kind", "mark", "pieces")

    def __init__(self, kind: str, mark: str) -> None:
        self.kind, self.mark, self.braces = kind, mark, len(mark)
        self.pieces: list[str] = []


class _Stack:
    """The open brackets of one text."""

    def __init__(self, wiki: Wiki, title: str) -> None:
        self.wiki, self.title = wiki, title
        self.frames = [_Frame("", "")]
        self.open = {"{": 0, "[": 0, "|": 0, "-": 0}

    def push(self, kind: str, mark: str) -> None:
        """Open a bracket."""
        self.frames.append(_Frame(kind, mark))
        self.open[kind] += 1

    def write(self, text: str) -> None:
        """Add text to the innermost open bracket."""
        self.frames[-1].pieces.append(text)

    def reveal(self, kind: str) -> _Frame:
        """Make the nearest open bracket of `kind` the innermost; what is open above it is text."""
        depth = next(i for i in range(len(self.frames) - 1, 0, -1) if self.frames[i].kind == kind)
        self.unclose(depth)
        return self.frames[-1]

    def unclose(self, depth: int) -> None:
        """What was opened above frame `depth` and never closed is text."""
        target = self.frames[depth].pieces
        for frame in self.frames[depth + 1 :]:
            target.append(self._unclosed(frame))
            target.extend(frame.pieces)
            self.open[frame.kind] -= 1
        del self.frames[depth + 1 :]

    def _unclosed(self, frame: _Frame) -> str:
        """What stands for an opening mark that nothing closes."""
        if frame.kind == "[":
            prefix, colon, _rest = "".join(frame.pieces[:1]).partition(":")
            return OPEN_FILE if colon and fold(prefix) in self.wiki.dropped else OPEN_LINK
        return OPEN_TEMPLATE if frame.kind == "{" else frame.mark

    def pop(self) -> None:
        """Take the innermost bracket away."""
        self.open[self.frames.pop().kind] -= 1

    def too_deep(self) -> bool:
        """Whether the innermost bracket lies so deep that it leaves nothing."""
        return len(self.frames) - 1 > MAX_DEPTH

    def close_braces(self, count: int) -> int:
        """Close templates and parameters by `count` braces; returns how many closed nothing."""
        while count >= 2 and self.open["{"]:
            frame = self.reveal("{")
            taken = min(frame.braces, count, 3)
            content = "" if self.too_deep() else "".join(frame.pieces)
            text = HOLE if not content else _parameter(content) if taken == 3 else self._template(content)
            count -= taken
            frame.braces -= taken
            if frame.braces >= 2:
                frame.pieces = [text]
                continue
            self.pop()
            self.write("{" * frame.braces + text)
        return count

    def _template(self, content: str) -> str:
        text = template_text(content, self.wiki, self.title)
        return _as_argument(text) if len(self.frames) > 2 else text

    def close_link(self, count: int) -> int:
        """Close a link by two of `count` square brackets; returns how many are left."""
        frame = self.reveal("[")
        content = "" if self.too_deep() else "".join(frame.pieces)
        if count > 2 and content.count("[") > content.count("]"):
            content += "]"
            count -= 1
        self.pop()
        target, bar, label = content.partition("|")
        text = content if "\n" in target else link_text(target, label if bar else None, self.wiki)
        self.write(_as_argument(text) if len(self.frames) > 1 else text)
        return count - 2


def without_brackets(text: str, wiki: Wiki, title: str) -> str:
    """`text` with templates and links replaced by their text, and tables removed."""
    text = _PLAIN_LINK.sub(lambda match: _as_argument(link_text(match[1], match[2], wiki)), text)
    text = "\n" + text  # tables begin a line
    stack = _Stack(wiki, title)
    variants = "-{" in text and wiki.language.partition("-")[0] in _VARIANT_LANGUAGES
    position = 0
    for match in (_TOKEN_OR_VARIANT if variants else _TOKEN).finditer(text):
        stack.write(text[position : match.start()])
        position = match.end()
        token = match[0]
        if token[-1] == "|":
            stack.push("|", token)
        elif token[0] == "{":
            stack.push("{", token)
        elif token == "[[":
            stack.push("[", token)
        elif token == "-{":
            stack.push("-", token)
        elif token[0] == "]":
            left = len(token)
            while left >= 2 and stack.open["["]:
                left = stack.close_link(left)
            stack.write("]" * left)
        elif token == "}-":
            stack.write("" if _close_variant(stack) else token)
        elif token[0] == "}":
            left = stack.close_braces(len(token))
            if left == 1 and text[position : position + 1] == "-" and variants and _close_variant(stack):
                position += 1
            else:
                stack.write("}" * left)
        elif stack.open["|"]:
            stack.reveal("|")
            stack.pop()
            stack.write("\n")
        else:
            stack.write(token)
    stack.write(text[position:])
    stack.unclose(0)
    return "".join(stack.frames[0].pieces)


def _close_variant(stack: _Stack) -> bool:
    if not stack.open["-"]:
        return False
    frame = stack.reveal("-")
    content = "" if stack.too_deep() else "".join(frame.pieces)
    stack.pop()
    stack.write(_as_argument(variant_text(content)))
    return True


def _as_argument(text: str) -> str:
    """`text` so that the template around it sees neither a bar nor a named argument in it."""
    if "|" in text:
        text = text.replace("|", "&#124;")
    return text.replace("=", "&#61;") if "=" in text else text


def _parameter(content: str) -> str:
    """{{{name|default}}} on a page that nothing includes is its default."""
    return content.partition("|")[2].partition("|")[0] or HOLE


def link_text(target: str, label: str | None, wiki: Wiki) -> str:
    """What [[target|label]] leaves; links to files, categories and the same page in other languages leave nothing."""
    target = target.strip()
    if target.startswith(":"):
        target = target[1:]
    elif ":" in target:
        prefix = fold(target.partition(":")[0])
        if prefix in wiki.dropped:
            return dropped_link(label or "", wiki)
        if prefix in INTERLANGUAGE:
            return ""
    if label is None:
        return target
    return label if label.strip() else _without_qualifier(target)  # the pipe trick hides the qualifier


def _without_qualifier(target: str) -> str:
    head, bracket, _qualifier = target.rpartition("(")
    return head.rstrip() if bracket and target.endswith(")") else target


def dropped_link(label: str, wiki: Wiki) -> str:
    """What an image leaves: one beside the text ends the paragraph, as on the page; a symbol in the line is a space."""
    options = {option.strip().lower() for option in label.split("|")}
    return " " + HOLE if options.isdisjoint(wiki.block_image) else "\n"


def variant_text(content: str) -> str:
    """One reading of -{zh-hans:A;zh-hant:B}-: the simplified one for Chinese, else the first.

    Flags stand before a bar: R and N take the text as it is, T, H and - show nothing, language codes only convert.
    """
    head, bar, body = content.partition("|")
    flags = {flag.strip() for flag in head.split(";")}
    if not bar:
        body = content
    elif flags <= _FLAG_LETTERS:
        if flags & _HIDING_FLAGS:
            return ""
        if "R" in flags or "N" in flags:
            return body
    elif all(re.fullmatch(r"[a-z]+(?:-[a-z]+)*", flag) for flag in flags):
        return body
    else:
        body = content
    rules = [rule for rule in map(_RULE.match, _RULE_BREAK.split(body)) if rule]
    if not rules:
        return body
    readings = {rule[1]: rule[2].strip() for rule in rules}
    return next((readings[code] for code in _PREFERRED if code in readings), rules[0][2].strip())


INTERLANGUAGE = magic("interlanguage")
