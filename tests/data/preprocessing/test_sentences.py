"""Sentence splitting: one row per rule, properties on any line, and agreement with Punkt on real text."""

import re
import time
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.compare_splitters import compare
from megatron_alum.data.preprocessing import stops
from megatron_alum.data.preprocessing.cleaning import clean_lines
from megatron_alum.data.preprocessing.languages import tables
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.punkt import PunktSplitter, find_punkt, train_punkt
from megatron_alum.data.preprocessing.sentences import RuleSplitter
from megatron_alum.data.preprocessing.settings import InputSettings
from tests.data.preprocessing.corpora import prepare, write_jsonl

# The sentences of a line, separated by |.
LINES = [
    "One. Two! Three? Four",
    "Dr. Smith met Mr. Jones and Gen. Lee.|They ate.",
    "J. R. R. Tolkien wrote it.|C. S. Lewis read it.",
    "It cost 3.14 dollars at example.com in v2.0 then.|Later it fell.",
    "He left in 1990.|The war ended.",
    "See No. 5 and pp. 12 of vol. 3.|Then no.|It was not.",
    "On Dec. 7 it rained.|He came in Dec.|She did not.",
    "The cat sat.|She ran.",
    "He works for Acme Inc. and Foo Ltd. in London.|Nobody knows.",
    "He worked for Acme Inc.|The firm grew.|It moved to the U.S.|In 1990 it closed.",
    "The U.S. Army and the U.K. Navy met at 5 p.m. GMT.",
    "apples, pears, etc. and more",
    "1. First item",
    "Wait... what?|Really?!|Yes...|No.",
    "He said \"Stop.\"|Then he left.|(He ran.)|[Sic.]|She said 'No.'|Good.",
    'Is it?|"Yes," he said.|\u201cNo.\u201d|\u2018Fine.\u2019|\u00abBien.\u00bb|Go.',
    "Yahoo! is a company, e.g. a firm, i.e. a business.",
    "It was \u00e9tage.|\u00c9tienne left.|\u041e\u043d.|\u041e\u043d\u0430.",
    "It ended. \u00e9tage follows in lower case.",
    "It was sold.|$5 was paid.|\u00a34,000 was kept.",
    "\u4e2d\u6587\u53e5\u5b50\u3002|\u7b2c\u4e8c\u53e5\uff01|\u300c\u5f15\u53f7\u3002\u300d|\u6700\u540e",
    "The end \u2026|And more.",
]


@pytest.mark.parametrize("line", LINES)
def test_rules(line):
    joined = (
        line.replace("\u3002|", "\u3002").replace("\uff01|", "\uff01").replace("\u300d|", "\u300d").replace("|", " ")
    )
    expected = line.split("|")
    if line == LINES[0]:
        expected = ["One.", "Two!", "Three?", "Four"]
    assert RuleSplitter().split(joined) == expected


# Languages, by --language (None: not given) and lines whose sentences are separated by |; a bar without white space
# around the cut is doubled. Written for this test, cut as a reader of the language would.
LANGUAGES = Path(__file__).with_name("sentences.tsv")


def language_lines():
    rows = [row.split("\t") for row in LANGUAGES.read_text(encoding="utf-8").splitlines() if row and row[0] != "#"]
    return [(language if language != "-" else None, line) for language, line in rows]


@pytest.mark.parametrize(("language", "line"), language_lines())
def test_sentences_of_languages(language, line):
    joined = line.replace("||", "").replace("|", " ")
    assert RuleSplitter(language).split(joined) == line.replace("||", "|").split("|")


def test_every_sentence_terminal_of_unicode_is_known():
    """Against the property in the `regex` library, which is generated from PropList.txt."""
    characters = [chr(c) for c in range(0x80, 0x10000) if not 0xD800 <= c < 0xE000]
    terminal = {c for c in characters if regex.match(r"\p{Sentence_Terminal}", c)}
    known = {c for c in characters if re.match(f"[{stops.STOPS}{stops.SPACED[1 : stops.SPACED.index(']')]}]", c)}
    newer = {c for c in terminal - known if unicodedata.name(c, "").startswith(("VERTICAL", "TAI THAM", "BATAK"))}
    assert terminal - known - newer <= {"\u104a", "\u2024", "\u2e2e", "\u2e3c", "\u2e53", "\u2e54", "\u2e60", "\u2e61"}
    assert known - terminal <= set("\u0f0d\u0f0e\u0f0f\u0f10\u0f11\u0f12\u0f14\u2026\u09f7")


def test_tables_of_languages_are_consistent():
    """Abbreviations are lower case without the period, and a word is in one list only, or also in that before
    numbers."""
    for name, table in tables().items():
        lists = {
            field: table[field].split() for field in ("never_final", "before_numbers", "maybe_final") if field in table
        }
        for field, words in lists.items():
            assert len(set(words)) == len(words) and all(word == word.lower() for word in words), (name, field)
            assert not any(word.endswith(".") for word in words), (name, field)
        both = set(lists.get("never_final", [])) & set(lists.get("maybe_final", []))
        assert both <= {"ft"}, name  # "Ft. Worth", "six ft."
        assert table["script"]


PARTS = [
    "a",
    "B",
    " ",
    ".",
    "!",
    "?",
    "\u2026",
    '"',
    ")",
    "(",
    "Dr.",
    "U.S.",
    "1",
    "\u3002",
    "\u300d",
    "\u00e9",
    "The",
    "no",
    "\u00a0",
]


@settings(max_examples=400, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(PARTS), st.characters()), max_size=30).map("".join))
def test_no_character_is_lost_and_offsets_ascend(line):
    spans = RuleSplitter().spans(line)
    position = 0
    for start, stop in spans:
        assert position <= start < stop <= len(line)
        assert line[position:start].strip() == "" and line[start:stop] == line[start:stop].strip()
        position = stop
    assert line[position:].strip() == ""
    assert "".join("".join(line[a:b] for a, b in spans).split()) == "".join(line.split())


CLEANING = [
    ("a\tb\u00a0c  d ", ["a b c d"]),
    ("a\r\nb\rc\vd\fe\x85f\u2028g\u2029h", list("abcdefgh")),
    ("e\u0301", ["\u00e9"]),
    ("\ufeffa\x00b\x1fc\x7fd\x9fe", ["abcde"]),
    ("a\ud800b", ["a\ufffdb"]),
    ("  \n\n x \n \u3000 \n", ["x"]),
    ("a\u200db\u00ad", ["a\u200db\u00ad"]),
    ("", []),
]


@pytest.mark.parametrize(("text", "lines"), CLEANING)
def test_cleaning_rules(text, lines):
    assert clean_lines(text) == lines


@settings(max_examples=300, derandomize=True)
@given(st.text(st.characters(), max_size=60))
def test_cleaned_lines_are_clean_and_stay_so(text):
    lines = clean_lines(text)
    assert clean_lines("\n".join(lines)) == lines
    for line in lines:
        assert line and line == " ".join(line.split()) and "\n" not in line
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c == "\ufeff" for c in line)


@pytest.mark.requires_shared_data
def test_agreement_with_punkt_on_wikipedia(shared_data):
    """Of 1 MB of Wikipedia; where they differ Punkt is mostly wrong ("Lt. | Colonel", "i.e. | the")."""
    plan = InputPlan(InputSettings((str(shared_data / "wiki" / "extracted" / "AA" / "wiki_0[1-3].bz2"),)))
    lines = (line for text in plan.texts(1_000_000) for line in clean_lines(text))
    counts, places = compare(lines, PunktSplitter(shared_data / "punkt" / "nltk_data"))
    both, ours, theirs = counts["both"], counts["rule only"], counts["punkt only"]
    assert both > 4000 and len(list(places)) == ours + theirs
    assert both / (both + ours) > 0.99  # measured 0.997
    assert both / (both + theirs) > 0.95  # measured 0.961
    assert 2 * both / (2 * both + ours + theirs) > 0.97  # measured 0.979


@pytest.mark.requires_shared_data
def test_punkt_from_a_folder_in_the_pipeline(tmp_path, shared_data):
    folder = shared_data / "punkt" / "nltk_data"
    source = write_jsonl(tmp_path / "in.jsonl", ["He met Dr. Smith. Then he left. It was 3.14 then."])
    manifest = prepare(tmp_path, source, sentence_splitter="punkt", punkt_dir=str(folder))
    assert manifest["num_sentences"] == 3
    assert find_punkt(folder) == find_punkt(find_punkt(folder)) == folder / "tokenizers" / "punkt_tab" / "english"


def test_punkt_trained_on_the_corpus_itself(tmp_path):
    """An abbreviation that only this corpus has is learnt, kept beside the output, and used."""
    texts = [
        f"We met qrx. {name} there. The cat sat on a mat. Then qrx. {name} ran." for name in ["smith", "jones"] * 60
    ]
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    manifest = prepare(tmp_path, source, sentence_splitter="punkt", train_punkt=True)
    assert "qrx" in (tmp_path / "out-punkt" / "abbrev_types.txt").read_text().split()
    splitter = PunktSplitter(tmp_path / "out-punkt")
    assert splitter.split("We met qrx. smith there.") == ["We met qrx. smith there."]
    again = prepare(tmp_path, source, sentence_splitter="punkt", punkt_dir=str(tmp_path / "out-punkt"), overwrite=True)
    assert again["num_sentences"] == manifest["num_sentences"]


def test_punkt_needs_text_and_parameters(tmp_path):
    with pytest.raises(ValueError, match="must hold text to train Punkt on"):
        train_punkt([], tmp_path / "p")
    with pytest.raises(ValueError, match=r"`--punkt-dir` must hold the Punkt parameters \(abbrev_types\.txt"):
        find_punkt(tmp_path)
    for options in ({"sentence_splitter": "punkt"}, {"punkt_dir": "x"}, {"train_punkt": True}):
        with pytest.raises(ValueError, match=r"must have --punkt-dir|must go with --sentence-splitter punkt"):
            prepare(tmp_path, "x", **options)


def test_the_language_of_a_dump_is_read_from_it(tmp_path):
    """By xml:lang, by <dbname> or by the addresses of wikiextractor; a flag wins."""
    page = "<page><title>A</title><ns>0</ns><id>1</id><revision><text>Am 3. Juni. Das ist gut.</text></revision></page>"
    for number, (head, language, sentences) in enumerate(
        [
            ('<mediawiki xml:lang="de">', "auto", 2),
            ("<mediawiki><siteinfo><dbname>dewiki</dbname></siteinfo>", "auto", 2),
            ('<mediawiki xml:lang="en">', "auto", 3),
            ('<mediawiki xml:lang="en">', "de-AT", 2),
        ]
    ):
        source = tmp_path / f"{number}.xml"
        source.write_text(f"{head}{page}</mediawiki>")
        out = str(tmp_path / f"out{number}")
        assert prepare(tmp_path, source, language=language, output_prefix=out)["num_sentences"] == sentences
    source = tmp_path / "wiki_00"
    source.write_text(
        '<doc id="1" url="https://de.wikipedia.org/wiki?curid=1" title="A">\nAm 3. Juni. Das ist gut.\n</doc>\n'
    )
    assert prepare(tmp_path, source, output_prefix=str(tmp_path / "o"))["num_sentences"] == 2
    with pytest.raises(ValueError, match=r"--language must be auto or a code .* but is german"):
        prepare(tmp_path, source, language="german")


@pytest.mark.parametrize("piece", ["A. ", "He ran. ", "z. B. "])
def test_time_is_linear_in_a_line(piece):
    """A line may be a book: a line sixteen times as long takes less than 64 times as long (a quadratic step: 256
    times)."""

    def seconds(repeats):
        begun = time.process_time()
        RuleSplitter("de").split(piece * repeats)
        return time.process_time() - begun

    assert seconds(240_000) < 64 * min(seconds(15_000) for _ in range(3))
