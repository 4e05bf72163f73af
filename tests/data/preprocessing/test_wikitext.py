"""Markup by kinds: the text of the rendered page remains, and no markup does."""

import html
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.compare_cleaners import compare
from megatron_alum.data.preprocessing.readers.wikiextractor import is_record, plain_text
from megatron_alum.data.preprocessing.readers.wikitext import clean_wikitext, wiki_of
from megatron_alum.data.preprocessing.readers.wikitext.brackets import MAX_DEPTH
from megatron_alum.data.preprocessing.readers.wikitext.elements import EXTENSIONS

# One row per rule: markup, and the text that a reader sees (HTML of MediaWiki 1.39).
PROTECTED = [
    ("A <nowiki><!--</nowiki> b. c <nowiki>--></nowiki> d", "A <!-- b. c --> d"),
    ("A <nowiki>{{x}} [[y]] <b> ''</nowiki> b", "A {{x}} [[y]] <b> '' b"),
    ("A <nowiki>&lt;</nowiki> &amp;lt; <nowiki>&amp;lt;</nowiki>", "A < &lt; &lt;"),
    ("a<!-- <nowiki> -->b<!-- </nowiki> -->c", "abc"),
    ("a <ref><!-- </ref> b", "a b"),
    ('A\n<syntaxhighlight lang="html">\n<!--\n</syntaxhighlight>\nB\n<source>\n{{\n</source>\nC', "A\nB\nC"),
    ('A <syntaxhighlight lang="c" inline>a<b && {{c}}</syntaxhighlight> b', "A a<b && {{c}} b"),
    ('A <source lang="c" enclose="none">int [[x]]</source> b', "A int [[x]] b"),
    ("A\n<pre>\n'''{{x}}\n</pre>\nB", "A\nB"),
    ("'''<nowiki>*</nowiki>''' a\n<nowiki>* b</nowiki>\n<nowiki/>: c", "* a\n* b\n: c"),
    ("a<!-- never closed\nb", "a"),
    ("a <ref>b</ref><ref name=c/> <ref name='d>e' group=\"/\">f</ref> g", "a g"),
    ("a <ref>not closed", "a not closed"),
    ("a<references/>b<references group=x />c<references><ref name=d>e</ref></references>f", "a\nb\nc\nf"),
    ("<includeonly>x</includeonly>a<noinclude>b</noinclude><onlyinclude>c</onlyinclude>", "abc"),
    ("a <includeonly>x", "a"),
]
ELEMENTS = [
    ("a <code>b</code> <tt>c</tt> <kbd>d</kbd> <samp>e</samp> <var>f</var> <section begin=g/>h<section end=g/>", None),
    ("A\n<code>\nint a;\nint b;\n</code>\nB", "A\nB"),
    ("<stdio.h>, List<String>, Map<K, V>, std::vector<T>, <a@example.org>, I <3 you, a <- b", None),
    ("x<y and y>z, a<b and c>d, i<j", None),
    ("The <blink> tag, the <marquee behavior> tag", None),
    ('<foo bar="1">a</foo> <span title="x > y">b</span> <span lang=\'en\' title="<i>">c</span>', "a b c"),
    ("a<span style=\"display:none\">x</span><div style='color:red; display : none'>y<div>z</div></div>b", "a\nb"),
    ('a<div style="display:none">x<div>y</div>z</div>b', "a\nb"),
    ("a<table><tr><td>x</td></tr></table>b", "a\nb"),
    ("a<br clear=all>b<BR/>c<hr />d", "a\nb\nc\nd"),
    ("a</div>b</i>c", "a\nbc"),
    ("''a''<sub>''b''</sub> <i>''c''</i>", "ab c"),
]
LINKS = [
    (
        "[http://a.b c] [//a.b c] [ftp://a c] [irc://a c] [mailto:a@b c] [tel:+1 c] [news:a c] [sip:a c] [magnet:a c]",
        "c c c c c c c c c",
    ),
    (
        "[[doi:10.1/2|paper]] [[wikt:cat|cat]] [[re:Invent]] [[w:x]] [[:fr:Chat]] [[:File:a.png]]",
        "paper cat re:Invent w:x fr:Chat File:a.png",
    ),
    ("a\n[[fr:Chat]]\n[[simple:Cat]] [[zh-min-nan:x]]", "a"),
    ("[[File:a.jpg|thumb|b [from the north]] c [[Image:a.jpg|d [[e]] {{f}} [http://g h]]] i", "c i"),
    ("[[Media:a.ogg|listen]] [[Media:b.ogg]] [[a|b [c]]] [[d|]] [e] [f", "listen Media:b.ogg b [c] d [e] [f"),
    ("{{{1|a|b}}} {{{|c}}}", "a c"),
    ("{{{1|x}}} {{{y}}}{{{z|{{{a|b}}}}}} {{lang|fr|{{{1|c}}}}}", "x b c"),
    ("a [[b\nc]] d", "a b\nc d"),
    ("{{nowrap|[[x|a=b]]}} {{lang|fr|c [[x|d=e]]}} {{nowrap|f {{lang|fr|1=|2=g {{=}} h}}}}", "a=b c d=e f g = h"),
]
UNBALANCED = [
    ("a {{b|c", "a b c"),
    ("a [[b|c", "a c"),
    ("a [[File:b|thumb|c\nd", "a\nd"),
    ("{{Infobox x\n| a = b\n| c = d\ntext", "text"),
    ("a [b] ]] c }} d", "a [b] c d"),
    ("{| class=x\n| a\n! b\n", ""),
]
LINES = [
    ("!Kung is spoken.\n'''!''' a", "!Kung is spoken.\n! a"),
    ("{{table start}}\n! head\n|-\n| cell\n! more\n|}\n! text", "! text"),
    ("{|\n! head\n|}\n! text", "! text"),
    ("[[a\n{|\n! head\n]]\n|}\n! text", "a\n! text"),
    ("== A ==\n=== B ===\n== C ==\ntext\n=== D ===", "C\ntext"),
    ("{{table start}}\n! head\n! head\n|-\n| cell\n|}\n! text\n! text", "! text\n! text"),
    ("__NOTOC__ __FORCETOC__ __init__ __BEZ__ a", "__init__ __BEZ__ a"),
    ("''{{PAGENAME}}'' is {{lc:ABC}} {{ucfirst:d}} {{#if:x|e|f}}{{#if:|e|f}}", "Title is abc D ef"),
]


def squeezed(text):
    return re.sub(r" +", " ", text)


@pytest.mark.parametrize(("source", "expected"), PROTECTED + ELEMENTS + LINKS + UNBALANCED + LINES)
def test_kinds_of_markup(source, expected):
    """None: every word and sign but the tags that MediaWiki knows stays."""
    if expected is None:
        expected = re.sub(r"</?(?:code|tt|kbd|samp|var|section)\b[^>]*>", "", source)
    assert squeezed(clean_wikitext(source, title="Title")) == squeezed(expected)


def test_brackets_within_brackets_leave_text_forty_deep():
    """MediaWiki expands templates within templates 40 deep; what lies deeper leaves nothing."""
    for start, end in (("{{nowrap|", "}}"), ("[[x|", "]]")):
        assert clean_wikitext(f"a {start * MAX_DEPTH}b{end * MAX_DEPTH} c") == "a b c"
        assert "b" not in clean_wikitext(f"a {start * (MAX_DEPTH + 2)}b{end * (MAX_DEPTH + 2)} c")


def test_a_page_in_its_own_words_names_no_title_of_another():
    assert clean_wikitext("{{PAGENAME}} a", title="{{x}} [[y]]") == "{{x}} [[y]] a"


# Fuzz: pieces of markup in any order, closed or not. Words are plain, so no part of a piece can be mistaken for text.
PIECES = [
    "{{", "}}", "{{{", "}}}", "[[", "]]", "[", "]", "|", "||", "=", "\n", "\n{|\n", "\n|}\n", "\n|-\n", "\n! ",
    "\n* ", "== ", "'''", "''", "<!--", "-->", "<ref>", "</ref>", "<ref name=a/>", "<nowiki>", "</nowiki>",
    "<code>", "</code>", "<div>", "</div>", '<span style="display:none">', "</span>", "<x>", "</x>", "</", "<", ">",
    "[[File:a.jpg|thumb|", "|thumb|", "{{lang|fr|", "{{foo|", "{{convert|5|km|", "-{", "}-", "-{zh-hans:",
    ";zh-hant:", "[http://a.b ", "__NOTOC__", "{{!}}", "<pre>", "</pre>", "<gallery>", "</gallery>",
    "<includeonly>", "</includeonly>", "word ", "text ", "Other. ", " ", "&lt;", "&amp;", "[[Category:", "[[a|b]]",
    "{{x}}", "<math>", "</math>", "'", "{", "}", "&#124;thumb",
]  # fmt: skip
FORBIDDEN = ("[[", "]]", "{{", "}}", "|thumb", "</")
WIKIS = [wiki_of((code,)) for code in ("en", "zh", "fr")]


def unprotected(source):
    """The source without what a page shows verbatim: <nowiki>, inline code and typed entities."""
    return "<nowiki" not in source and "&" not in source and "{{!}}" not in source


@settings(max_examples=600)
@given(st.lists(st.sampled_from(PIECES), max_size=30), st.sampled_from(WIKIS))
def test_no_markup_is_left(pieces, wiki):
    source = "".join(pieces)
    text = clean_wikitext(source, wiki)
    if unprotected(source):
        assert not [mark for mark in FORBIDDEN if mark in text.lower()]
    assert not re.search("[\ufdd0-\ufdef]", text)
    assert all(line.strip() for line in text.split("\n")) or not text


@settings(max_examples=300)
@given(st.text(alphabet="{}[]|<>!'=-\n ab;:/&#_*", max_size=60), st.sampled_from(WIKIS))
def test_no_markup_is_left_of_any_signs(source, wiki):
    text = clean_wikitext(source, wiki)
    if unprotected(source):
        assert not [mark for mark in FORBIDDEN if mark in text.lower()]


@settings(max_examples=200)
@given(st.text(alphabet="{}[]|<>!'=-ab;:/&#_*\t\xa0 ", max_size=40))
def test_nowiki_keeps_every_character(inside):
    """Except for runs of white space, which HTML shows as one space."""
    source = f"a <nowiki>{html.escape(inside, quote=False)}</nowiki> b"
    assert clean_wikitext(source).split() == f"a {inside} b".split()


MAX_GROWTH = 60
"""Twenty times the input may take no more than sixty times as long; a quadratic step takes four hundred times."""
LONG = {
    "named parameters": lambda n: "{{infobox" + "".join(f"|p{i}=v" for i in range(n)) + "}}",
    "positional parameters": lambda n: "a {{lang|fr" + "|v" * n + "}} b {{foo" + "|v" * n + "}} c",
    "spaces": lambda n: "a" + " " * n + "b (" + " " * n + "== c",
    "separators": lambda n: "a (" + ", " * n + "b {{x}}" + ";" * n,
    "unclosed comments": lambda n: "a <!-- b " * n,
    "unclosed elements": lambda n: "<ref>a <nowiki>b <p>c " * n + '<ref name="a ' * n + "<i style='display:none'>" * n,
    "unclosed templates": lambda n: "{{a|b " * n,
    "unopened brackets": lambda n: "a}} b]] |} " * n,
    "crossed brackets": lambda n: "[[a {{b {| c " * n + "]] }} |} " * n,
    "nested templates": lambda n: "{{nowrap|a " * n + "}}" * n,
    "nested links": lambda n: "[[a|b " * n + "]]" * n,
    "runs of brackets": lambda n: "{" * n + "[" * n + "a" + "]" * n + "}" * n + "[{" * n + "[[" + "{[" * n,
    "removed templates": lambda n: "{{x}} " * n + "{{x}}, " * n + "({{x}} " * n,
    "unknown templates": lambda n: "a {{foo|bar}} " * n,
    "external links": lambda n: "[http://a b " * n + "[http://" * n,
    "apostrophes": lambda n: "'''a " * n + "'" * n,
    "attributes": lambda n: "<b " + "style= " * n + "> <b " + "a='" * n + "<a" * n,
    "tables": lambda n: "\n{|\n! a\n| b" * n,
    "variants": lambda n: "-{zh-hans:a;" * n + "}-" * n + "-{" + "zh-hans:a;" * n + "}-",
    "headings": lambda n: "== a ==\n" * n + "=" * n + "a" + " =" * n,
    "switches": lambda n: "__A " * n + "_" * n,
}  # fmt: skip


def seconds(source, wiki):
    begun = time.process_time()
    clean_wikitext(source, wiki)
    return time.process_time() - begun


@pytest.mark.parametrize(("kind", "wiki"), [*((kind, 0) for kind in LONG), ("variants", 1), ("unknown templates", 1)])
def test_time_is_linear(kind, wiki):
    """In English, and for what is specific to the Chinese wiki. Best of up to five: other load only adds time, and a
    quadratic step is slow every time."""
    small = large = float("inf")
    for _attempt in range(5):
        small = min(small, seconds(LONG[kind](1000), WIKIS[wiki]))
        large = min(large, seconds(LONG[kind](20_000), WIKIS[wiki]))
        if large < MAX_GROWTH * small:
            return
    pytest.fail(f"20 times the input took {large / small:.0f} times as long: {large:.3f} s")


def test_wikiextractor_leaves_neither_entities_nor_tags():
    text = 'AT&amp;T, R&amp;D, x &lt; y and y &gt; z, "a"&lt;templatestyles src="x"&gt;&lt;/templatestyles&gt;'
    assert plain_text(text) == 'AT&T, R&D, x < y and y > z, "a"'
    assert plain_text("a &lt; br &gt; b&lt;br/&gt;c< br >d") == "a \n b\nc\nd"
    assert plain_text("the &lt;stdio.h&gt; header, List<String>") == "the <stdio.h> header, List<String>"
    assert plain_text("AT&T and x < y") == "AT&T and x < y"  # versions before 3 escape nothing
    assert all(plain_text(f"a&lt;{name} x=1/&gt;b&lt;/{name}&gt;") == "ab" for name in EXTENSIONS)
    assert is_record({"id": "1", "revid": "2", "url": "u", "title": "t", "text": "x"})
    assert not is_record({"id": "1", "url": "u", "title": "t", "text": "x"})


def test_words_that_both_peers_find():
    """Of "a a b c" and "a a b d", ours lacks one "a"; pages that only one of them has do not count."""
    extracted, cleaned = {"1": "a, a b. c", "2": "x"}, {"1": "a b", "3": "y"}
    total, lacking = compare(extracted, [("1", "a a b d"), ("2", "x"), ("3", "y")], cleaned)
    assert total == 3 and lacking == {("1", "a"): 1}
