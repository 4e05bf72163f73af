"""Which pages of a dump are articles: no redirect, no other namespace, wikitext, no disambiguation.

`skip_reason` gives the reason to leave a page out, which is counted. A dump older than 2009 has no <ns>: the title
says it then, "Talk:Alabama", "Datei:x.jpg", by the names of <siteinfo>, of MediaWiki and of the wiki's language.
"""

import re
import xml.etree.ElementTree as ET

from megatron_alum.data.preprocessing.readers.wikitext.protected import protect
from megatron_alum.data.preprocessing.readers.wikitext.wiki import Wiki, fold, magic, wiki_of

OTHER_NAMESPACE = "not in the article namespace"
REDIRECT = "redirect"
NOT_WIKITEXT = "not wikitext"
DISAMBIGUATION = "disambiguation page"
EMPTY = "empty page"
NO_REVISION = "page without text"

_REDIRECT = re.compile(r"\s*[#\uff03]([^\[\]\n]{1,60}?)\s*:?\s*\[\[")
_CALL = re.compile(r"\{\{([^{}|\n][^{}|]{0,200})(?:\||\}\})")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_NAMESPACE = re.compile(r'<namespace key="(-?\d+)"[^>]*>([^<]*)</namespace>')
_LANGUAGE = re.compile(r'<mediawiki\b[^>]*\bxml:lang="([\w-]+)"')
_DATABASE = re.compile(r"<dbname>([a-z_]+?)wik(?:i|tionary|ibooks|iquote|isource|inews|iversity|ivoyage)</dbname>")


def skip_reason(page: ET.Element, revision: ET.Element, text: str, wiki: Wiki) -> str | None:
    """Why the page is no article, or None."""
    title = page.findtext("title", "")
    namespace = page.findtext("ns")
    if namespace.strip() != "0" if namespace is not None else in_other_namespace(title, wiki):
        return OTHER_NAMESPACE
    if page.find("redirect") is not None or is_redirect(text):
        return REDIRECT
    if revision.findtext("model", "wikitext") != "wikitext":
        return NOT_WIKITEXT
    if title.strip().lower().endswith(wiki.disambiguation_titles) or is_disambiguation(text, wiki):
        return DISAMBIGUATION
    return None


def in_other_namespace(title: str, wiki: Wiki) -> bool:
    """Whether a title belongs to another namespace: "Talk:X", but not "2001: A Space Odyssey"."""
    prefix, colon, _rest = title.partition(":")
    return bool(colon) and fold(prefix) in wiki.namespaces


def is_redirect(text: str) -> bool:
    """Whether a page begins with a redirect in any language: "#REDIRECT [[X]]", "#WEITERLEITUNG [[X]]"."""
    found = _REDIRECT.match(text)
    return found is not None and found[1].strip().lower() in magic("redirect")


def is_disambiguation(text: str, wiki: Wiki) -> bool:
    """Whether the page calls one of the wiki's templates for it, outside of comments, <nowiki> and code."""
    if not _calls(text, wiki):
        return False
    return "<" not in text or _calls(protect(text), wiki)


def _calls(text: str, wiki: Wiki) -> bool:
    if "__" in text and "__disambig__" in text.lower():
        return True
    for call in _CALL.finditer(text):
        name = call[1]
        name = fold(_COMMENT.sub("", name) if "<" in name else name)
        if name in wiki.disambiguation:
            return True
        if ":" in name:
            prefix, _, rest = name.partition(":")
            if prefix.strip() in wiki.template and rest.strip() in wiki.disambiguation:
                return True
    return False


def wiki_of_head(head: str) -> Wiki:
    """The wiki of a dump, from its first bytes: language, database name and the namespaces of <siteinfo>."""
    found = [match[1].replace("_", "-") for match in (_DATABASE.search(head), _LANGUAGE.search(head)) if match]
    local = tuple((key, name) for key, name in _NAMESPACE.findall(head) if name)
    return wiki_of(tuple(dict.fromkeys(code.lower() for code in found)), local)
