"""The benchmarks of preprocessing on very little text: every row, every line, and their errors."""

import pytest

from benchmarks.bench_data import TOOL
from tests.helpers.warm import run_script


def test_the_tool_that_is_measured_exists():
    assert TOOL.is_file()


@pytest.mark.requires_shared_data
def test_compare_splitters(shared_data):
    words = ["--input", shared_data / "wiki/extracted/AA/wiki_01.bz2", "--punkt-dir", shared_data / "punkt/nltk_data"]
    done = run_script("benchmarks/compare_splitters.py", *words, "--max-mb", "0.2", "--show", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sentence ends inside lines: ") and "agreement (F1) 9" in done.stdout and len(lines) == 4


@pytest.mark.slow
@pytest.mark.requires_shared_data
def test_every_row_is_measured(tmp_path, shared_data):
    """All rows exist and the table is written. Speeds are examined in `make bench`."""
    dump = next((shared_data / "wiki" / "dump").glob("enwiki-table*.bz2"))
    words = [
        "--corpus",
        shared_data / "wiki/extracted/AA/wiki_01.bz2",
        "--dump",
        dump,
        "--mb",
        "0.1",
        "--dump-mb",
        "0.1",
    ]
    words += ["--vocab-file", shared_data / "vocab/bert-base-uncased-vocab.txt", "--output", tmp_path / "t.csv"]
    done = run_script("benchmarks/bench_data.py", *words, "--punkt-dir", shared_data / "punkt/nltk_data")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert rows[0].startswith("what,megabytes,wall_seconds") and len(rows) >= 7
    assert "punkt, sentence by sentence" in done.stdout and "MediaWiki reader, 2 worker(s)" in done.stdout


def test_without_text_it_says_what_is_missing():
    done = run_script("benchmarks/bench_data.py")
    assert done.returncode == 2 and "--corpus (with --vocab-file) or --dump must be given" in done.stderr
