"""MediaWiki markup to plain text: every step in its order, each linear in the length of the page.

    Removed with their contents   comments, templates without text, tables, <ref>, <math>, <gallery>, blocks of code,
                                  files, categories, links to the page in other languages, hidden text, __WORDS__
    Reduced to their text         other templates, [[target|label]], [url label], ''emphasis'', elements, entities
    Kept as text                  <nowiki>, inline code, exponents of units and numbers ("10^18"), angle brackets and
                                  apostrophes that are no markup
    A line of its own             headings (dropped when nothing follows them), list items, block elements, <br>

What is not balanced loses its marks and keeps its words: an unclosed {{ never swallows the rest of an article.

`clean_wikitext` is checked against mwparserfromhell (parser.py) on real articles: see tests.
"""

import re

from megatron_alum.data.preprocessing.readers.wikitext.brackets import without_brackets
from megatron_alum.data.preprocessing.readers.wikitext.elements import without_tags
from megatron_alum.data.preprocessing.readers.wikitext.lines import prose_lines
from megatron_alum.data.preprocessing.readers.wikitext.protected import protect
from megatron_alum.data.preprocessing.readers.wikitext.wiki import ENGLISH, Wiki

# An exponent, and the unit of length before it: "km<sup>2</sup>", "[[metre|m]]<sup>3</sup>", "10<sup>-18</sup>".
_EXPONENT = re.compile(
    r"[<{](?:[Ss][Uu][Pp]>|\{[Ss]up\|)[ \t]*+(-|\u2212|&minus;)?(\d+)[ \t]*+(?:</[Ss][Uu][Pp]>|\}\})"
)
_ENDS_IN_UNIT = re.compile(r"(?:^|[^A-Za-z])(?:km|m|cm|mm|mi|ft)(?:\]\])?$")


def clean_wikitext(source: str, wiki: Wiki = ENGLISH, title: str = "") -> str:
    """Plain text of the page `title`, one paragraph, heading or list item a line."""
    text = with_exponents(protect(source))
    return "\n".join(prose_lines(without_tags(without_brackets(text, wiki, title))))


def with_exponents(text: str) -> str:
    """Exponents of units and numbers as text, which would lose their meaning with their tags: "1018" is not 10^18."""
    return _EXPONENT.sub(_exponent, text)


def _exponent(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - len("-km]]")) : match.start()]
    sign, power = match[1], match[2]
    if before[-1:].isdecimal():
        return "^" + ("\u2212" if sign else "") + power
    if power in ("2", "3") and not sign and _ENDS_IN_UNIT.search(before):
        return "\u00b2" if power == "2" else "\u00b3"
    return match[0]
