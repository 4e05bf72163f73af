"""What our cleaner of wikitext loses: words that both peers find in an article and ours does not.

    pip install wikiextractor
    python -m benchmarks.compare_cleaners --dump DUMP.xml.bz2 --show 30

    wikiextractor       its JSON output with --no-templates, entities resolved
    mwparserfromhell    strip_code() of the same wikitext

Words are runs of letters and digits, counted with multiplicity. Only articles that both peers and we keep are counted.
What only one peer finds is often markup, so it does not measure loss; both seldom make the same error.
"""

import collections
import html
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import mwparserfromhell
import mwxml

from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.data.preprocessing.readers.base import Document
from megatron_alum.data.preprocessing.readers.mediawiki import MediawikiReader
from megatron_alum.data.preprocessing.readers.streams import open_stream

WORD = re.compile(r"\w+")
TARGET = 0.0005
"""The share of the peers' common words that ours may lack."""


def words(text: str) -> collections.Counter[str]:
    """How often each word occurs in `text`."""
    return collections.Counter(WORD.findall(text))


def by_wikiextractor(dump: Path) -> dict[str, str]:
    """{page id: text} of wikiextractor. ValueError when it is not installed."""
    if not importlib.util.find_spec("wikiextractor"):
        raise ValueError("wikiextractor must be installed, but is not. Install it with `pip install wikiextractor`.")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "wikiextractor.WikiExtractor", str(dump), "-o", folder, "--json", "-q"]
        subprocess.run([*command, "--no-templates", "--processes", "1"], check=True)
        lines = [line for path in Path(folder).rglob("wiki_*") for line in path.read_text("utf-8").splitlines()]
    return {entry["id"]: html.unescape(entry["text"]) for entry in map(json.loads, lines)}


def sources(dump: Path) -> Iterator[tuple[str, str]]:
    """(page id, wikitext) of every page."""
    with open_stream(dump) as stream:
        for page in mwxml.Dump.from_file(stream).pages:
            yield str(page.id), next(iter(page)).text or ""


def ours(dump: Path) -> dict[str, str]:
    """{page id: text} of our reader."""
    reader = MediawikiReader()
    items = (item for chunk in reader.chunks(dump) for item in reader.documents(chunk))
    return {item.id: item.text for item in items if isinstance(item, Document)}


def by_parser(dump: Path) -> Iterator[tuple[str, str]]:
    """(page id, text) of mwparserfromhell."""
    return ((key, mwparserfromhell.parse(source).strip_code()) for key, source in sources(dump))


def compare(
    extracted: dict[str, str], parsed: Iterable[tuple[str, str]], cleaned: dict[str, str]
) -> tuple[int, collections.Counter[tuple[str, str]]]:
    """(words that both peers find, {(page id, word): how many of them ours lacks}) from {page id: text} of each."""
    total = 0
    lacking: collections.Counter[tuple[str, str]] = collections.Counter()
    for key, text in parsed:
        if key in extracted and key in cleaned:
            both = words(extracted[key]) & words(text)
            total += both.total()
            lacking.update({(key, word): count for word, count in (both - words(cleaned[key])).items()})
    return total, lacking


def main() -> None:
    """Parse the command line, compare, print."""
    parser = Parser(description=__doc__)
    parser.add_argument("--dump", required=True, help="MediaWiki XML dump (.xml.bz2, one file)")
    parser.add_argument("--show", type=int, default=0, help="lacking words to print, the most frequent first")
    arguments = parser.parse_args()
    dump = Path(arguments.dump)
    total, lacking = compare(by_wikiextractor(dump), by_parser(dump), ours(dump))
    for (key, word), count in lacking.most_common(arguments.show):
        print(f"page {key:<9} {count:>4} x {word}")
    print(
        f"{lacking.total()} of {total} words that both peers find are lacking: "
        f"{lacking.total() / max(1, total):.3%} (at most {TARGET:.2%})"
    )


if __name__ == "__main__":
    main_guard(main)
