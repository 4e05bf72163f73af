"""MediaWiki markup to plain text, for the wikis of any language.

wiki.py        a wiki's names for namespaces, redirects, switches and templates, from the tables beside it
pages.py       which pages are articles
protected.py   comments, <nowiki>, code and other stretches that no later step may look into
brackets.py    {{templates}}, {{{parameters}}}, [[links]], {| tables |} and -{variants}-, in one pass
templates.py   the text of a template; writers.py the ones that need more than a pattern, with dates.py, numbers.py
               and quantities.py
elements.py    HTML elements, and angle brackets that are text
lines.py       headings, lists, emphasis, entities, and what removed markup leaves behind
clean.py       all of it in order; parser.py does the same with mwparserfromhell
"""

from megatron_alum.data.preprocessing.readers.wikitext.clean import clean_wikitext
from megatron_alum.data.preprocessing.readers.wikitext.parser import clean_by_parser
from megatron_alum.data.preprocessing.readers.wikitext.wiki import ENGLISH, Wiki, wiki_of

__all__ = ["ENGLISH", "Wiki", "clean_by_parser", "clean_wikitext", "wiki_of"]
