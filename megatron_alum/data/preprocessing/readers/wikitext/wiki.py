"""A wiki's names for namespaces, redirect words, switches, image options, disambiguation and templates.

The tables beside this file hold MediaWiki's own names by language and the templates of the larger wikis; each says
where it comes from. A dump names its namespaces in <siteinfo>, but not their aliases ([[Bild:...]], [[Imagem:...]]).
English names are valid everywhere. If a file does not state its language, the names of all languages are used for
namespaces and for disambiguation (a page lost to a name in another language is counted, a page of talk is not text).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megatron_alum.data.preprocessing.readers.wikitext.writers import Writer, writer

TABLES = Path(__file__).with_name("tables")
FILE_KEYS = frozenset({"6", "14"})
"""File and Category: links to them are not text."""
_TEMPLATE, _ARTICLE = "10", "0"
_WIKI_CODES = {"simple": "en", "als": "gsw", "no": "nb", "zh-classical": "lzh", "zh-min-nan": "nan", "zh-yue": "yue"}
_WIKI_CODES |= {"be-x-old": "be-tarask", "bat-smg": "sgs", "fiu-vro": "vro", "roa-rup": "rup"}
_SHORT_NAME = 4
"""A template with a shorter name ("dp", "gren") marks a disambiguation page only in its own wiki."""

Row = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Wiki:
    """The names of one wiki, all in lower case and with spaces for underscores."""

    language: str
    """code of the language, as in xml:lang; empty if the dump does not say"""
    namespaces: frozenset[str]
    """of all but the articles: pages of dumps without <ns> are told by their title"""
    dropped: frozenset[str]
    """namespaces whose links are not text (files, categories)"""
    template: frozenset[str]
    """prefixes of the template namespace: {{Vorlage:Name}} is {{Name}}"""
    block_image: frozenset[str]
    """options that set an image beside the text"""
    disambiguation: frozenset[str]
    """templates that make a page a disambiguation page"""
    disambiguation_titles: tuple[str, ...]
    """endings of the titles of such pages"""
    templates: dict[str, Writer]
    """what known templates leave, by exact name"""
    families: dict[str, Writer]
    """the same for every name with this prefix ("lang-", "cite ")"""
    prefixes: tuple[str, ...]
    """the keys of `families`"""
    own_text: tuple[re.Pattern[str], ...]
    """names of templates that are their own text: {{XXe si\u00e8cle}}, {{1er}}"""


@lru_cache(maxsize=64)
def wiki_of(languages: tuple[str, ...], local: tuple[tuple[str, str], ...] = ()) -> Wiki:
    """The wiki of these codes, that of the wiki before that of its language ("als", "gsw"), with (key, name) from
    <siteinfo>."""
    codes = _with_fallbacks(languages)
    everywhere = not codes
    names: dict[str, set[str]] = {}
    for code, key, values in table("namespaces"):
        if key != "fallback" and (everywhere or code == "en" or code in codes):
            names.setdefault(key, set()).update(_folded(values))
    for key, name in local:
        names.setdefault(key, set()).add(fold(name))
    names.pop(_ARTICLE, None)
    language = languages[-1] if languages else ""
    templates, families, own_text = _template_rows(codes, language)
    return Wiki(
        language=language,
        namespaces=frozenset(name for found in names.values() for name in found if name),
        dropped=frozenset(name for key in FILE_KEYS for name in names[key]),
        template=frozenset(names[_TEMPLATE]),
        block_image=frozenset(magic("block", {*codes, "en"} if codes else None)),
        disambiguation=frozenset(
            name
            for code, kind, values in table("disambiguation")
            if kind == "template" and (everywhere or code == "*" or code in codes)
            for name in _folded(values)
            if not everywhere or code == "*" or len(name) > _SHORT_NAME
        ),
        disambiguation_titles=tuple(
            f"({name})"
            for code, kind, values in table("disambiguation")
            if kind == "title" and (everywhere or code == "*" or code in codes)
            for name in _folded(values)
        ),
        templates=templates,
        families=families,
        prefixes=tuple(families),
        own_text=own_text,
    )


def _with_fallbacks(languages: tuple[str, ...]) -> list[str]:
    """`languages` and those whose names MediaWiki takes for them, in the order of their weight."""
    falls = {code: values.split("|") for code, key, values in table("namespaces") if key == "fallback"}
    codes: list[str] = []
    waiting = [code for code in languages if code]
    while waiting:
        code = waiting.pop(0)
        if code not in codes:
            codes.append(code)
            waiting += [*([_WIKI_CODES[code]] if code in _WIKI_CODES else []), *falls.get(code, [])]
            waiting += [code.partition("-")[0]] if "-" in code else []
    return codes


def _template_rows(
    codes: list[str], language: str
) -> tuple[dict[str, Writer], dict[str, Writer], tuple[re.Pattern[str], ...]]:
    """The rows of templates.tsv for these codes; a wiki's own rows win over those for all."""
    exact: dict[str, Writer] = {}
    families: dict[str, Writer] = {}
    own_text: list[re.Pattern[str]] = []
    ranks = {code: rank for rank, code in enumerate(["*", *reversed(codes)])}
    rows = [row for row in table("templates") if row[0] in ranks]
    for code, names, pattern in sorted(rows, key=lambda row: ranks[row[0]]):
        if names.startswith("/"):
            own_text.append(re.compile(names[1:], re.IGNORECASE))
            continue
        write = writer(pattern, language if code == "*" else code)
        for name in names.split("|"):
            if name.endswith("*"):
                families[fold(name[:-1])] = write
            else:
                exact[name if name != name.lower() else fold(name)] = write
    return exact, families, tuple(own_text)


@lru_cache(maxsize=8)
def table(name: str) -> list[Row]:
    """The rows of one of the tables: TAB between columns, "#" before a comment."""
    lines = (TABLES / f"{name}.tsv").read_text(encoding="utf-8").split("\n")
    return [tuple(line.split("\t")) for line in lines if line and not line.startswith("#")]


@lru_cache(maxsize=32)
def _magic_words(kind: str) -> list[tuple[str, list[str]]]:
    return [(code, values.split("|")) for code, found, values in table("magic_words") if found == kind]


def magic(kind: str, codes: set[str] | None = None) -> set[str]:
    """MediaWiki's words of one kind ("redirect", "switch", ...), of `codes` or of all languages."""
    return {word for code, words in _magic_words(kind) if codes is None or code in codes for word in words}


def fold(name: str) -> str:
    """The form in which names are compared: lower case, single spaces, no underscores."""
    return " ".join(name.replace("_", " ").split()).lower()


def _folded(values: str) -> list[str]:
    return [fold(value) for value in values.split("|")]


ENGLISH = wiki_of(("en",))
