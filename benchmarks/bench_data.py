"""Speed of preprocessing against its peers' methods, on the same text in the same run.

    python -m benchmarks.bench_data --corpus ../shared/data/wiki/extracted --dump DUMP.xml.bz2 --vocab-file vocab.txt \
        --punkt-dir ../shared/data/punkt/nltk_data --mb 100 --output benchmarks/results/data.csv

    punkt, sentence by sentence     nltk's Punkt, then tokenizers, one sentence per call: what Megatron's tool does
    library, whole documents        tokenizers.encode_batch_fast on documents: no sentences at all
    preprocess_data.py              the whole tool, start-up included, with 1 and 2 workers
    wikiextractor                   on the dump, --no-templates, if installed; against our reader on the same dump

Wall seconds count; CPU seconds are given as well and are more reliable on a machine that does other work. The dump is
repeated, as a multistream file, until it has --dump-mb: streams of 25 of its long pages have about 0.7 MB of XML, as
Wikimedia's have with 100 of all sizes. Rows of an existing --output that this run does not measure are kept: text and
dump can be measured one after the other. The promised ratios are printed.
"""

import argparse
import bz2
import csv
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.punkt import PunktSplitter
from megatron_alum.data.preprocessing.readers.base import Chunk, Document
from megatron_alum.data.preprocessing.readers.mediawiki import MediawikiReader
from megatron_alum.data.preprocessing.schedulers import map_in_order, open_executor
from megatron_alum.data.preprocessing.settings import InputSettings
from megatron_alum.data.tokenizers.folder import write_folder
from megatron_alum.data.tokenizers.vocabulary import TokenizerSource
from megatron_alum.report.machine import current_commit, processor_name

TOOL = Path(__file__).resolve().parents[1] / "tools" / "preprocess_data.py"
STREAM_PAGES = 25


@dataclass
class Row:
    """One measurement."""

    what: str
    megabytes: float
    """of text (JSONL rows) or of XML (dump rows), 1e6 bytes"""
    wall_seconds: float
    cpu_seconds: float
    megabytes_per_second: float = 0.0
    megabytes_per_cpu_second: float = 0.0
    processor: str = ""
    commit: str = ""

    def __post_init__(self) -> None:
        self.megabytes_per_second = self.megabytes / self.wall_seconds
        self.megabytes_per_cpu_second = self.megabytes / self.cpu_seconds
        self.processor, self.commit = processor_name(), current_commit()


def measure(what: str, megabytes: float, function: Callable[[], object]) -> Row:
    """Run `function` once; CPU time includes the processes it started and waited for."""
    begun, cpu = time.monotonic(), _cpu_seconds()
    function()
    row = Row(what, megabytes, time.monotonic() - begun, _cpu_seconds() - cpu)
    print(
        f"{what:<44} {row.megabytes:7.1f} MB {row.wall_seconds:8.1f} s {row.megabytes_per_second:7.2f} MB/s "
        f"{row.megabytes_per_cpu_second:7.2f} MB/CPU s",
        flush=True,
    )
    return row


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_corpus(source: str, path: Path, megabytes: float) -> float:
    """JSONL of the first `megabytes` MB of text in `source`; returns the MB written."""
    text_bytes = 0
    with path.open("w", encoding="utf-8") as out:
        for number, text in enumerate(InputPlan(InputSettings((source,))).texts(int(megabytes * 1.02e6))):
            out.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
            text_bytes += len(text.encode())
            if text_bytes >= megabytes * 1e6:
                break
    return text_bytes / 1e6


def write_dump(source: Path, path: Path, megabytes: float) -> float:
    """A multistream dump of the pages of `source`, repeated to `megabytes` MB of XML; returns the MB."""
    xml = bz2.decompress(source.read_bytes())
    start, end = xml.index(b"  <page>"), xml.rindex(b"</page>") + len(b"</page>\n")
    pages = re.findall(rb"  <page>.*?</page>\n", xml[start:end], re.DOTALL)
    streams = [b"".join(pages[i : i + STREAM_PAGES]) for i in range(0, len(pages), STREAM_PAGES)]
    packed = [bz2.compress(stream) for stream in streams]
    copies = max(1, round(megabytes * 1e6 / (end - start)))
    path.write_bytes(bz2.compress(xml[:start]) + b"".join(packed) * copies + bz2.compress(xml[end:]))
    return (len(xml) - (end - start) + copies * (end - start)) / 1e6


def documents_of(path: Path) -> list[str]:
    """The texts of a JSONL file."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def sentence_by_sentence(path: Path, tokenizer: Tokenizer, punkt_dir: str) -> None:
    """The peer's method: read, split with Punkt, encode each sentence separately."""
    splitter = PunktSplitter(punkt_dir)
    for text in documents_of(path):
        for sentence in splitter.split(text):
            _ids = tokenizer.encode(sentence, add_special_tokens=False).ids


def whole_documents(path: Path, tokenizer: Tokenizer) -> None:
    """The library's fastest use: batches of documents, one thread."""
    texts = documents_of(path)
    for first in range(0, len(texts), 200):
        for encoding in tokenizer.encode_batch_fast(texts[first : first + 200], add_special_tokens=False):
            _ids = encoding.ids


def run_tool(source: Path, folder: Path, tokenizer_dir: Path, workers: int) -> None:
    """tools/preprocess_data.py as a user runs it."""
    command = [sys.executable, str(TOOL), "--input", str(source), "--output-prefix", str(folder / f"out{workers}")]
    command += ["--tokenizer", str(tokenizer_dir), "--workers", str(workers), "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def count_characters(chunk: Chunk) -> int:
    """Characters of the articles in a chunk: what a worker does to read a dump, without the rest of the pipeline."""
    return sum(len(item.text) for item in MediawikiReader().documents(chunk) if isinstance(item, Document))


def read_dump(path: Path, workers: int) -> int:
    """Read every article with `workers` processes; returns the characters."""
    tasks = ((chunk,) for chunk in MediawikiReader().chunks(path))
    with open_executor("local", workers) as (executor, workers):
        return sum(count for _task, count in map_in_order(executor, workers, count_characters, tasks))


def run_wikiextractor(path: Path, folder: Path, processes: int) -> None:
    """wikiextractor on the same dump, in its faster mode."""
    command = [sys.executable, "-m", "wikiextractor.WikiExtractor", str(path), "-o", str(folder / f"we{processes}")]
    command += ["--no-templates", "--processes", str(processes), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def bench_text(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows on JSONL."""
    tokenizer_dir, source = folder / "tokenizer", folder / "corpus.jsonl"
    write_folder(TokenizerSource(vocab_file=Path(arguments.vocab_file)), tokenizer_dir)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    megabytes = write_corpus(arguments.corpus, source, arguments.mb)
    rows = []
    if arguments.punkt_dir:
        peer = lambda: sentence_by_sentence(source, tokenizer, arguments.punkt_dir)  # noqa: E731
        rows.append(measure("punkt, sentence by sentence", megabytes, peer))
    rows.append(measure("library, whole documents", megabytes, lambda: whole_documents(source, tokenizer)))
    for workers in (1, 2):
        run = lambda: run_tool(source, folder, tokenizer_dir, workers)  # noqa: B023, E731
        rows.append(measure(f"preprocess_data.py, {workers} worker(s)", megabytes, run))
    return rows


def bench_dump(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows on a MediaWiki dump."""
    path = folder / "dump-multistream.xml.bz2"
    megabytes = write_dump(Path(arguments.dump), path, arguments.dump_mb)
    rows = []
    if importlib.util.find_spec("wikiextractor"):
        for processes in (1, 2):
            run = lambda: run_wikiextractor(path, folder, processes)  # noqa: B023, E731
            rows.append(measure(f"wikiextractor, {processes} process(es)", megabytes, run))
    else:
        print("wikiextractor is not installed (pip install wikiextractor): its rows are left out")
    for workers in (1, 2):
        run = lambda: read_dump(path, workers)  # noqa: B023, E731
        rows.append(measure(f"MediaWiki reader, {workers} worker(s)", megabytes, run))
    return rows


def main() -> None:
    """Parse the command line, measure, write the table."""
    parser = Parser(description=__doc__)
    parser.add_argument("--corpus", help="Wikipedia text in any format the preprocessor reads")
    parser.add_argument("--dump", help="MediaWiki XML dump (.xml.bz2, one file)")
    parser.add_argument("--vocab-file", help="uncased BERT vocabulary, for --corpus")
    parser.add_argument("--punkt-dir", help="Punkt parameters for the peer's method")
    parser.add_argument("--mb", type=float, default=100.0, help="MB of text (default: 100)")
    parser.add_argument("--dump-mb", type=float, default=60.0, help="MB of XML (default: 60)")
    parser.add_argument("--output", help="CSV file to write")
    arguments = parser.parse_args()
    if (not arguments.corpus and not arguments.dump) or (arguments.corpus and not arguments.vocab_file):
        raise ValueError("--corpus (with --vocab-file) or --dump must be given, but is not. See --help.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        rows = bench_text(arguments, Path(name)) if arguments.corpus else []
        rows += bench_dump(arguments, Path(name)) if arguments.dump else []
    print("\n".join(promises({row.what: row for row in rows})))
    if arguments.output:
        write_table(Path(arguments.output), rows)


def promises(rows: dict[str, Row]) -> list[str]:
    """The ratios that the project promises, from the rows that were measured."""
    pairs = [
        (f"{TOOL.name}, 1 worker(s)", "punkt, sentence by sentence", "at least 4"),
        (f"{TOOL.name}, 2 worker(s)", f"{TOOL.name}, 1 worker(s)", "at least 1.8"),
        ("MediaWiki reader, 1 worker(s)", "wikiextractor, 1 process(es)", "at least 0.5"),
        ("MediaWiki reader, 2 worker(s)", "MediaWiki reader, 1 worker(s)", "at least 1.8"),
    ]
    return [
        f"{ours} / {theirs}: {rows[ours].megabytes_per_second / rows[theirs].megabytes_per_second:.2f} ({bound})"
        for ours, theirs, bound in pairs
        if ours in rows and theirs in rows
    ]


def write_table(path: Path, rows: list[Row]) -> None:
    """Write `rows` to the CSV file, after its existing rows of other names."""
    table = [
        {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in asdict(r).items()} for r in rows
    ]
    if path.exists():
        with path.open(newline="") as stream:
            table = [old for old in csv.DictReader(stream) if old["what"] not in {row.what for row in rows}] + table
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, table[0])
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main_guard(main)
