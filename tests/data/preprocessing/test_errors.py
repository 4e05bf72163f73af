"""Bad input and bad output folders: the user sees one sentence, and nothing is left that looks like output.

what                                      outcome                                          test
empty, no text, binary, truncated input   error, nothing written                           FAILURES
200 MB line                               skipped and counted; error if it is all there is test_memory.py
invalid UTF-8                             repaired and counted; error under --strict       here
broken record, empty document             skipped and counted with its id                  here
duplicate ids; duplicate texts            two documents; one under --deduplicate           here; test_pipeline.py
one document, one word                    a corpus of one sentence                         here
finished output of the same name          error, kept; replaced by --overwrite             here
full disk, read-only disk                 error, nothing left                              here
killed; crashing worker; two runs at once resumed; traceback; error                        test_resume.py
"""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from megatron_alum.data.shards.files import open_shards
from tests.data.preprocessing.corpora import ARTICLES, left_behind, prepare, write_jsonl, write_vocab

ROOT = Path(__file__).parents[3]
GARBAGE = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200))


def lines(*texts):
    return "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)).encode()


BIG = lines(*[f"The cat {i} sat." for i in range(3000)])

# name of the input file, its bytes, options, what the one sentence must say
FAILURES = [
    ("in.jsonl", b"", {}, r"`--input` must hold text, but is empty"),
    ("in.jsonl", b"\n\n \n", {"format": "jsonl"}, r"must hold at least one document with text"),
    ("in.jsonl", lines("", " \n "), {}, r"holds none \(found: 2 with no text\)"),
    (
        "in.jsonl",
        b'{"text": 5}\nnot json\n[1]\n',
        {},
        r"1 with no string under 'text', 1 with not JSON, 1 with not a JSON",
    ),
    ("in.txt", GARBAGE, {}, r"must be text in a known format .* but holds binary data"),
    ("in.jsonl.bz2", bz2.compress(BIG)[:-20], {}, r"in\.jsonl\.bz2` must be a whole \.bz2 file, but is truncated"),
    ("in.jsonl.gz", gzip.compress(BIG)[:-20], {}, r"must be a whole \.gz file, but is truncated"),
    ("in.jsonl.xz", lzma.compress(BIG)[:-20], {}, r"must be a whole \.xz file, but is truncated"),
    ("in.jsonl.zst", zstandard.compress(BIG)[:-20], {}, r"must be a whole \.zst file, but is truncated"),
    ("in.jsonl.bz2", GARBAGE, {}, r"must be a whole \.bz2 file, but is truncated or damaged"),
    ("in.jsonl.gz", GARBAGE, {}, r"must be a whole \.gz file"),
    ("in.jsonl.xz", GARBAGE, {}, r"must be a whole \.xz file"),
    ("in.jsonl.zst", GARBAGE, {}, r"must be a whole \.zst file"),
    (
        "in.txt",
        b"The cat \xff\xfe sat.\n",
        {"strict": True},
        r"must be whole UTF-8 text under --strict, but has: invalid UTF",
    ),
    ("in.jsonl", lines("The cat.", ""), {"strict": True}, r"The document 1 in in\.jsonl .* but has: no text"),
    ("in.jsonl", lines("The cat."), {"min_document_chars": 50}, r"1 with shorter than 50 characters"),
    ("in.jsonl", lines("The cat."), {"vocab_file": "missing.txt"}, r"`--vocab-file` must be an existing file"),
    (
        "in.jsonl",
        lines("The cat."),
        {"punkt_dir": ".", "sentence_splitter": "punkt"},
        r"`--punkt-dir` must hold the Punkt",
    ),
    ("in.jsonl", lines("The cat."), {"num_shards": 4, "shard_id": 3}, r"with --num-shards, use fewer shards"),
    (
        "in.jsonl",
        lines("The cat."),
        {"scheduler": "tcp://127.0.0.1:9"},
        r"must be a Dask scheduler, but .* does not answer",
    ),
]


@pytest.mark.parametrize(
    ("name", "data", "options", "message"), FAILURES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_failures_are_one_sentence_and_leave_nothing(tmp_path, monkeypatch, name, data, options, message):
    monkeypatch.setattr("megatron_alum.data.preprocessing.schedulers.DASK_TIMEOUT_SECONDS", 1)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, tmp_path / name, **options)
    assert left_behind(tmp_path, keep={name, "vocab.txt"}) == []


@pytest.mark.parametrize("missing", ["[MASK]", "[CLS]", "[PAD]"])
def test_vocabulary_without_a_special_token(tmp_path, missing):
    write_vocab(tmp_path, without=missing)
    with pytest.raises(ValueError, match=rf"must contain .* but .*vocab\.txt lacks \[{missing[1:-1]}\]"):
        prepare(tmp_path, write_jsonl(tmp_path / "in.jsonl", ARTICLES))


def test_missing_input_and_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for word, message in (("none.txt", "matches nothing"), ("*.nothing", "matches nothing"), ("empty", "holds none")):
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path, tmp_path / word)


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"The cat \xff sat.\n\nThe dog ran.\n")
    manifest = prepare(tmp_path, tmp_path / "in.txt")
    assert manifest["num_documents"] == 2
    assert manifest["repaired"]["invalid UTF-8"]["count"] == 1
    assert "block 1" in manifest["repaired"]["invalid UTF-8"]["examples"][0]


def test_broken_and_empty_documents_are_counted_with_their_ids(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(
        lines("The cat.", "", "The dog.") + b"{broken\n" + b'{"id": "x9", "text": null}\n'
    )
    manifest = prepare(tmp_path, tmp_path / "in.jsonl")
    assert manifest["num_documents"] == 2
    assert {reason: entry["count"] for reason, entry in manifest["skipped"].items()} == {
        "no text": 1,
        "not JSON": 1,
        "no string under 'text'": 1,
    }
    assert manifest["skipped"]["no text"]["examples"] == ["1"]
    assert manifest["skipped"]["no string under 'text'"]["examples"] == ["x9"]


def test_duplicate_ids_are_two_documents(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "7", "text": "The cat."}\n{"id": "7", "text": "A dog."}\n')
    assert prepare(tmp_path, tmp_path / "in.jsonl")["num_documents"] == 2


def test_one_document_with_one_word(tmp_path):
    manifest = prepare(tmp_path, write_jsonl(tmp_path / "in.jsonl", ["cat"]))
    assert (manifest["num_documents"], manifest["num_sentences"], manifest["num_tokens"]) == (1, 1, 1)
    assert open_shards(tmp_path / "out").num_documents == 1


def test_a_finished_corpus_is_not_replaced_by_accident(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ARTICLES)
    prepare(tmp_path, source)
    before = (tmp_path / "out.bin").read_bytes()
    with pytest.raises(ValueError, match=r"must name a new corpus, but .*out\.json exists"):
        prepare(tmp_path, source)
    assert open_shards(tmp_path / "out", verify=True).num_documents == 3
    write_jsonl(source, ARTICLES[:1])
    prepare(tmp_path, source, overwrite=True)
    assert open_shards(tmp_path / "out", verify=True).num_documents == 1
    assert (tmp_path / "out.bin").read_bytes() != before


def run_tool(*words, **env):
    """tools/preprocess_data.py in its own process: (exit status, stderr)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/preprocess_data.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        timeout=120,
    )
    return done.returncode, done.stderr


def test_the_tool_prints_one_sentence_without_traceback(tmp_path):
    vocab = write_vocab(tmp_path)
    status, errors = run_tool("--input", tmp_path / "no", "--output-prefix", tmp_path / "out", "--vocab-file", vocab)
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: `--input` must be an existing file") and "Traceback" not in errors


def test_output_where_nothing_can_be_written(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ARTICLES)
    vocab = write_vocab(tmp_path)
    status, errors = run_tool("--input", source, "--output-prefix", "/proc/nowhere/out", "--vocab-file", vocab)
    assert status == 2 and "/proc/nowhere" in errors and "Traceback" not in errors


def on_small_disk(tmp_path, mount_options):
    """The tool writing into a file system mounted only for it: (exit status, stderr, what is left there)."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(BIG)
    vocab, disk = write_vocab(tmp_path), tmp_path / "disk"
    disk.mkdir()
    tool = [sys.executable, ROOT / "tools/preprocess_data.py", "--input", source, "--output-prefix", disk / "out"]
    tool = shlex.join(map(str, [*tool, "--workers", "1", "--vocab-file", vocab]))
    script = f"mount -t tmpfs -o {mount_options} none {disk} || exit 77; {tool}; status=$?; ls -A {disk}; exit $status"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this system does not allow user mounts: {done.stderr}")
    return done.returncode, done.stderr, done.stdout


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is not installed")
@pytest.mark.parametrize(
    ("mount_options", "message"), [("size=20k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_disk_that_is_full_or_read_only(tmp_path, mount_options, message):
    status, errors, left = on_small_disk(tmp_path, mount_options)
    assert status == 2 and message.lower() in errors.lower() and "Traceback" not in errors
    assert left == ""


def test_file_size_limit(tmp_path):
    """A full quota: the write fails in the middle of a file."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(BIG)
    vocab = write_vocab(tmp_path)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000)); import runpy, sys; "
    limit += (
        f"sys.argv[0] = {str(ROOT / 'tools/preprocess_data.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", limit, "--input", source, "--output-prefix", tmp_path / "out", "--workers", "1"]
    done = subprocess.run(
        [*map(str, command), "--vocab-file", str(vocab)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 2 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert left_behind(tmp_path, keep={"in.jsonl", "vocab.txt"}) == []
