"""The same as clean.py by mwparserfromhell: a full parser, about ten times slower, and the check on the fast one."""

from megatron_alum.config.extras import require
from megatron_alum.data.preprocessing.readers.wikitext.brackets import INTERLANGUAGE, dropped_link
from megatron_alum.data.preprocessing.readers.wikitext.clean import with_exponents
from megatron_alum.data.preprocessing.readers.wikitext.lines import prose_lines
from megatron_alum.data.preprocessing.readers.wikitext.protected import HOLE, protect
from megatron_alum.data.preprocessing.readers.wikitext.templates import template_text
from megatron_alum.data.preprocessing.readers.wikitext.wiki import ENGLISH, Wiki, fold

_BAR = "\ufdd7"
"""Stands for a bar inside an argument, of a link."""


def clean_by_parser(source: str, wiki: Wiki = ENGLISH, title: str = "") -> str:
    """Plain text of the page `title`, one paragraph, heading or list item a line."""
    require("mwparserfromhell")
    import mwparserfromhell

    code = mwparserfromhell.parse(with_exponents(protect(source)), skip_style_tags=False)
    for tag in code.filter_tags(recursive=True):
        name = str(tag.tag).strip().lower()
        if name in ("table", "ref"):
            _replace(code, tag, HOLE)
        elif name == "br":
            _replace(code, tag, "\n")
    for template in reversed(code.filter_templates(recursive=True)):  # the innermost first
        parts = [str(template.name), *(str(argument).replace("|", _BAR) for argument in template.params)]
        _replace(code, template, template_text("|".join(parts), wiki, title).replace(_BAR, "|"))
    for link in code.filter_wikilinks(recursive=True):
        prefix, colon, _rest = str(link.title).partition(":")
        if colon and fold(prefix) in wiki.dropped:
            _replace(code, link, dropped_link(str(link.text or ""), wiki))
        elif colon and fold(prefix) in INTERLANGUAGE:
            _replace(code, link, "")
    for heading in code.filter_headings():
        _replace(code, heading, f"\n{'=' * heading.level} {heading.title.strip_code()} {'=' * heading.level}\n")
    return "\n".join(prose_lines(code.strip_code(normalize=False, collapse=True)))


def _replace(code: object, node: object, text: str) -> None:
    """Replace a node unless an outer one took it away before."""
    try:
        code.replace(node, text)  # type: ignore[attr-defined]
    except ValueError:
        return
