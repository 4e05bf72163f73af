"""Wikis of other languages: namespaces and their aliases, redirects, disambiguation pages, templates in sentences.

The right values are those of MediaWiki's own message files and of the templates' documentation on the wikis; sentences
are mostly those of the articles of DBpedia's minidumps, and of the test suite of wikipoff-tools (French).
"""

import collections
import html
import json
from pathlib import Path

import pytest

from megatron_alum.data.preprocessing.readers.base import Document
from megatron_alum.data.preprocessing.readers.mediawiki import MediawikiReader
from megatron_alum.data.preprocessing.readers.wikitext import clean_wikitext, wiki_of
from megatron_alum.data.preprocessing.readers.wikitext.numbers import written
from megatron_alum.data.preprocessing.readers.wikitext.pages import in_other_namespace, is_disambiguation, is_redirect
from megatron_alum.data.preprocessing.readers.wikitext.wiki import TABLES, fold, magic, table

CASES = json.loads((Path(__file__).parents[2] / "golden" / "prep" / "wikis.json").read_text(encoding="utf-8"))
"""files: names of the file namespace, of which <siteinfo> lists one; titles: (wiki, title in a dump without <ns> and
<siteinfo>, whether it is of another namespace); disambiguation: templates; sentences: (wiki, wikitext, what a reader
sees), the last ones with templates that no table knows"""


@pytest.mark.parametrize("code", CASES["files"])
def test_links_to_files_and_categories_are_not_text(code):
    wiki = wiki_of((code,))
    for name in [*CASES["files"][code], "File", "Image"]:
        for prefix in (name, name.lower(), f" {name} "):
            assert clean_wikitext(f"a [[{prefix}:x.jpg|thumb|b]]c", wiki).split() == ["a", "c"]
            assert clean_wikitext(f"a [[:{prefix}:x.jpg|b]] c", wiki).split() == ["a", "b", "c"]


@pytest.mark.parametrize(("code", "title", "other"), CASES["titles"])
def test_titles_tell_the_namespace(code, title, other):
    assert in_other_namespace(title, wiki_of((code,) if code else ())) is other


def test_the_names_of_the_dump_itself_count():
    wiki = wiki_of(("de",), (("4", "Mein Wiki"), ("6", "Lichtbild"), ("110", "Quelle")))
    assert in_other_namespace("Mein_Wiki:A", wiki) and in_other_namespace("Quelle:A", wiki)
    assert clean_wikitext("a [[Lichtbild:x.jpg|b]] c", wiki).split() == ["a", "c"]


def test_redirects_in_every_language():
    assert len(magic("redirect")) > 100
    for word in magic("redirect"):
        for source in (f"#{word} [[A]]", f"\n #{word.upper()}: [[A]]\n[[Kategorie:X]]", f"#{word}[[:A|b]]"):
            assert is_redirect(source) or word.upper().lower() != word
    for source in ("# one [[A]]", "#REDIRECT A", "text #REDIRECT [[A]]", "#redirecting is [[A]]", ""):
        assert not is_redirect(source)
    assert all(
        is_redirect(f"#{word} [[A]]")
        for word in ("WEITERLEITUNG", "REDIRECTION", "\u8ee2\u9001", "\u91cd\u5b9a\u5411", "RINVIA")
    )


def test_switches_of_every_language_are_not_text():
    words = [word for word in magic("switch") if word.upper().lower() == word]
    assert len(words) > 300
    source = " ".join(f"a __{word.upper()}__ b" for word in words)
    assert clean_wikitext(source).split() == ["a", "b"] * len(words)


HIDING = [("<!--", "-->"), ("<nowiki>", "</nowiki>"), ("<pre>", "</pre>"), ("<syntaxhighlight>", "</syntaxhighlight>")]


@pytest.mark.parametrize("code", CASES["disambiguation"])
def test_disambiguation_pages(code):
    wiki = wiki_of((code,))
    for name in CASES["disambiguation"][code]:
        for call in (f"{{{{{name}}}}}", f"{{{{ {name.lower()} |geo}}}}", f"{{{{Template:{name}<!-- x -->\n}}}}"):
            assert is_disambiguation(f"A is\n* b\n{call}", wiki)
        hidden = [f"{start}{{{{{name}}}}}{end}" for start, end in HIDING]
        only_like_it = [
            f"{{{{{name} needed|date=May}}}}",
            f"{{{{not {name}}}}}",
            f"{{{{about|{name}}}}}",
            f"[[{name}]]",
        ]
        for other in hidden + only_like_it:
            assert not is_disambiguation(f"A is b. {other}", wiki)


def test_what_only_speaks_of_disambiguation_is_an_article():
    for name in (
        "disambiguation needed",
        "dn",
        "surname",
        "Disambiguation link",
        "Begriffskl\u00e4rungshinweis",
        "tl",
        "dab link",
    ):
        assert not is_disambiguation(f"A {{{{{name}|b}}}}", wiki_of(("en",)))
    assert is_disambiguation("A __DISAMBIG__", wiki_of(("en",)))
    assert not is_disambiguation("Een {{dp}}", wiki_of(("en",))) and is_disambiguation("Een {{dp}}", wiki_of(("nl",)))
    anywhere = wiki_of(())
    assert not is_disambiguation("Een {{dp}}", anywhere) and is_disambiguation("Een {{Doorverwijspagina}}", anywhere)


@pytest.mark.parametrize(("code", "source", "expected"), CASES["sentences"])
def test_templates_in_sentences(code, source, expected):
    text = clean_wikitext(source, wiki_of((code,)))
    assert [line.split() for line in text.split("\n")] == [line.split() for line in expected.split("\n")]


def test_a_dump_names_its_wiki(tmp_path):
    """From <mediawiki>, <dbname> and <siteinfo>; with none of them, every language's names are taken."""
    articles = [
        ("A", "a [[Bild:x.jpg|b]] c {{Taste|dog}}."),
        ("Diskussion:A", "a"),
        ("B", "{{Begriffskl\u00e4rung}}"),
        ("C", "#WEITERLEITUNG [[A]]"),
    ]
    pages = "".join(
        f"<page><title>{title}</title><id>{i}</id><revision><text>{html.escape(text)}</text></revision></page>\n"
        for i, (title, text) in enumerate(articles)
    )
    heads = (
        '<mediawiki xml:lang="de">\n',
        "<mediawiki><siteinfo><dbname>dewiki</dbname></siteinfo>\n",
        "<mediawiki>\n",
    )
    for number, head in enumerate(heads):
        path = tmp_path / f"{number}.xml"
        path.write_text(f"{head}{pages}</mediawiki>", encoding="utf-8")
        items = [item for chunk in MediawikiReader().chunks(path) for item in MediawikiReader().documents(chunk)]
        kept = [item.text.split() for item in items if isinstance(item, Document)]
        assert len(items) == 4 and kept == [["a", "c", "dog."]]


def test_tables_are_well_formed():
    for path in TABLES.glob("*.tsv"):
        lines = path.read_text(encoding="utf-8").split("\n")
        assert any(line.startswith("# Source: ") for line in lines), path.name
        rows = table(path.stem)
        assert rows and all(len(row) == 3 and all(row) for row in rows), path.name


def test_no_template_has_two_rows_of_one_wiki():
    names = collections.Counter(
        (code, name if name != name.lower() else fold(name))
        for code, values, _pattern in table("templates")
        if not values.startswith("/")
        for name in values.split("|")
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("code", "source", "expected"),
    [
        ("en", "1234567.891", "1,234,567.891"),
        ("en", "1,234", "1,234"),
        ("en", "123 123456", "123 123,456"),
        ("de", "1234.5", "1.234,5"),
        ("fr", "25000 km", "25\u00a0000 km"),
        ("es", "1234 12345", "1234 12\u00a0345"),
        ("pl", "1234.5", "1234,5"),
        ("pt-br", "1234", "1\u00a0234"),
        ("de-ch", "1234,5", "1'234,5"),
        ("gsw", "12345", "12.345"),
        ("ja", "12345", "12,345"),
        ("xx", "12345", "12,345"),
        ("de", "007 0.5 1.2.3 1.234.567", "007 0,5 1.2.3 1.234.567"),
    ],
)
def test_numbers_as_each_wiki_writes_them(code, source, expected):
    """By MediaWiki 1.39's {{formatnum:}}; what is grouped already stays."""
    assert written(source, code) == expected
