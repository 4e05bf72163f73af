"""The command lines of the data tools: every flag, what they print, and how they fail."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_alum.data.shards.files import open_shards
from tests.data.preprocessing.corpora import ARTICLES, SPECIALS, left_behind, write_jsonl, write_vocab

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def run(monkeypatch, capsys):
    """run(tool, *words) -> (exit status, stdout, stderr) of a tool in this process."""

    def run_tool(tool, *words):
        monkeypatch.setattr(sys, "argv", [str(TOOLS / tool), *map(str, words)])
        status = 0
        try:
            runpy.run_path(str(TOOLS / tool), run_name="__main__")
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, *capsys.readouterr()

    return run_tool


@pytest.fixture
def source(tmp_path):
    write_vocab(tmp_path)
    return write_jsonl(tmp_path / "in.jsonl", [*ARTICLES, ""])


def test_preprocess_says_what_it_did(run, tmp_path, source):
    words = ["--input", source, "--output-prefix", tmp_path / "out", "--vocab-file", tmp_path / "vocab.txt"]
    status, out, err = run("preprocess_data.py", *words, "--workers", "1")
    assert status == 0
    assert out == f"{tmp_path}/out: 3 documents, 6 sentences, 37 tokens (uint16, vocabulary 98)\n"
    assert "skipped 1 documents: no text (first: 3)" in err


OTHER_FLAGS = (
    "--format jsonl --text-key body --case keep --strip-accents false --num-shards 2 --workers 1 --scheduler local "
    "--resume --overwrite --checkpoint-mb 1 --min-document-chars 3 --deduplicate --wikitext-cleaner fast "
    "--sentence-splitter rule --strict false"
).split()


def test_preprocess_with_every_other_flag(run, tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": 1, "body": "a dog. a cat."}\n' * 40)
    (tmp_path / "b.more").write_text("".join(json.dumps({"body": text.lower()}) + "\n" for text in [*ARTICLES, "ab"]))
    inputs = ["--input", tmp_path / "a.jsonl", tmp_path / "*.more", "--vocab-file", tmp_path / "vocab.txt"]
    for shard in range(2):
        words = [*inputs, "--output-prefix", tmp_path / f"part{shard}", "--shard-id", shard, *OTHER_FLAGS]
        status, _out, err = run("preprocess_data.py", *words)
        assert status == 0, err
    manifests = [json.loads((tmp_path / f"part{shard}.json").read_text()) for shard in range(2)]
    assert manifests[0]["skipped"]["duplicate"]["count"] == 39 and manifests[0]["tokenizer"]["lower_case"] is False
    assert manifests[1]["skipped"]["shorter than 3 characters"]["count"] == 1
    status, out, _err = run("merge_shards.py", "--input", f"{tmp_path}/part*.json", "--output-prefix", tmp_path / "all")
    assert status == 0 and ": 2 corpora, 4 documents, 5 sentences, " in out
    assert open_shards(tmp_path / "all", verify=True).num_documents == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-shards", "2", "--shard-id", "2"], "--shard-id must be from 0 to 1"),
        (["--workers", "-1"], "--workers must be 0"),
        (["--format", "docx"], "--format must be one of auto, mediawiki"),
        (["--scheduler", "cluster"], "--scheduler must be local or an address"),
        (["--min-document-chars", "0"], "--min-document-chars must be at least 1"),
        (["--checkpoint-mb", "-1"], "--checkpoint-mb must be 0"),
        (["--sentence-splitter", "punkt"], "--sentence-splitter punkt must have --punkt-dir FOLDER or --train-punkt"),
        (["--tokenizer", "x"], "`--tokenizer` or `--vocab-file` must be given, and not both"),
        (["--merge-file", __file__], "`--merge-file` must go with a vocab.json"),
        (["--wokers", "2"], "--wokers is not an option of this program. Did you mean --workers?"),
    ],
)
def test_wrong_flags_of_preprocess(run, tmp_path, source, words, message):
    given = [
        "--input",
        source,
        "--output-prefix",
        tmp_path / "out",
        "--vocab-file",
        tmp_path / "vocab.txt",
        "--workers",
        "1",
    ]
    status, _out, err = run("preprocess_data.py", *given, *words)
    assert status == 2 and err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1]
    assert left_behind(tmp_path, keep={"in.jsonl", "vocab.txt"}) == []


def test_train_tokenizer(run, tmp_path, source):
    words = [
        "--input",
        source,
        "--output",
        tmp_path / "tok",
        "--type",
        "wordpiece",
        "--vocab-size",
        "60",
        "--case",
        "lower",
    ]
    status, out, err = run("train_tokenizer.py", *words, "--min-frequency", "1", "--max-mb", "1")
    assert status == 0, err
    assert out == f"{tmp_path}/tok: wordpiece vocabulary of 60 entries\n"
    vocab = json.loads((tmp_path / "tok" / "tokenizer.json").read_text())["model"]["vocab"]
    assert [vocab[token] for token in SPECIALS] == list(range(5))
    status, _out, err = run("train_tokenizer.py", *words)
    assert status == 2 and "`--output` must be a new folder" in err
    status, _out, err = run("train_tokenizer.py", "--input", tmp_path / "none", "--output", tmp_path / "t2")
    assert status == 2 and "matches nothing" in err and not (tmp_path / "t2").exists()
    status, _out, err = run("train_tokenizer.py", "--input", source)
    assert status == 2 and "--output" in err


def test_inspect_shows_documents_and_verifies(run, tmp_path, source):
    run(
        "preprocess_data.py",
        "--input",
        source,
        "--output-prefix",
        tmp_path / "out",
        "--vocab-file",
        tmp_path / "vocab.txt",
    )
    status, out, _err = run("inspect_shards.py", tmp_path / "out", "--document", "0", "2", "--verify")
    assert status == 0
    for expected in (
        "checksums of 3 files: correct",
        "documents: 3",
        "sentences: 6",
        "tokens: 37",
        "skipped: 1 (no text; first: 3)",
        "document 0\n  0: the cat sat on the mat.\n  1: the dog ran far away.\n  2: then it was the cat.",
        "document 2\n  0: it was the mat, and then he ran away.",
    ):
        assert expected in out
    status, _out, err = run("inspect_shards.py", tmp_path / "out", "--document", "3")
    assert status == 2 and "`--document` must be from 0 to 2, but is 3 instead" in err
    with (tmp_path / "out.bin").open("r+b") as stream:
        stream.write(b"\1\1")
    status, _out, err = run("inspect_shards.py", tmp_path / "out", "--verify")
    assert status == 2 and "must have SHA-256" in err


@pytest.mark.requires_shared_data
@pytest.mark.parametrize("objective", ["nsp", "sop", "none"])
def test_inspect_shows_the_samples_of_training(run, tmp_path, shared_data, objective):
    """On real text: with its labels put back, each segment of a sample shown is a stretch of the shard."""
    prefix = tmp_path / "out"
    words = ["--input", shared_data / "wiki/extracted/AA/wiki_01.bz2", "--output-prefix", prefix, "--workers", "1"]
    run("preprocess_data.py", *words, "--vocab-file", shared_data / "vocab/bert-base-uncased-vocab.txt")
    before = sorted(path.name for path in tmp_path.iterdir())
    options = ["--seq-length", "64", "--objective", objective, "--mask-rate-start", "0.2", "--seed", "7"]
    status, out, err = run("inspect_shards.py", prefix, "--sample", "0", "5", "41", *options)
    assert status == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    lines = out.split("\n\n")[-1].splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("sample ")] == ["sample 0", "sample 5", "sample 41"]
    vocabulary = json.loads((tmp_path / "out-tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    text = np.fromfile(f"{prefix}.bin", np.uint16)
    for line in lines:
        if line.startswith("sample "):
            positions, masked = (int(line.split(", ")[i].split()[0]) for i in (1, 2))
            assert positions <= 64 and masked == max(1, round(positions * 0.2))
            continue
        tokens = re.sub(r"\{\S+ = (\S+)\}", r"\1", line).split()
        ids = np.array([vocabulary[token] for token in tokens if token not in ("[CLS]", "[SEP]")], np.uint16)
        assert ids.tobytes() in text.tobytes()
    status, _out, err = run("inspect_shards.py", prefix, "--sample", "-1")
    assert status == 2 and "--sample must be at least 0, but is -1 instead" in err
    status, _out, err = run("inspect_shards.py", prefix, "--sample", "1", "--seq-lenth", "9")
    assert status == 2 and "Did you mean --seq-length?" in err


def test_merge_errors(run, tmp_path):
    status, _out, err = run("merge_shards.py", "--input", tmp_path / "none", "--output-prefix", tmp_path / "out")
    assert status == 2 and f"there is no {tmp_path / 'none'}.idx" in err and left_behind(tmp_path, keep=set()) == []
