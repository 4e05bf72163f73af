"""Files that are not what they seem: read where that is certain, else refused in one sentence that names what was
found and what helps.

what                                        outcome
compressed without suffix, or a wrong one   read
one NUL, bare control characters in JSON    read, counted
tars of JSON lines, of compressed members   read
JSON arrays, objects over several lines     refused, with their fields and a command
a --text-key that no line has               refused, with the fields that are there
CSV, TSV                                    refused, with their columns and a command
other encodings                             refused, with their name; a few stray bytes are repaired and counted
archives, documents, web pages              refused, with the command that unpacks them
a --format that is not the file's           refused
a sentence a line, no blank lines           warned about by preprocessing and by pre-training
"""

import bz2
import gzip
import io
import json
import logging
import lzma
import shlex
import subprocess
import tarfile
import zipfile

import pytest
import zstandard

from megatron_alum.config.data import DataConfig
from megatron_alum.data.account import Account, OpenAccount
from megatron_alum.data.dataset import open_datasets
from megatron_alum.data.journal import Journal
from megatron_alum.data.merge import merge_shards
from megatron_alum.data.pipeline import preprocess
from megatron_alum.data.readers import records
from megatron_alum.data.readers.base import Document
from megatron_alum.data.readers.detect import detect_format, make_reader
from megatron_alum.data.readers.sniff import SAMPLE_BYTES
from megatron_alum.data.shards import open_shards
from megatron_alum.data.statistics import summary
from megatron_alum.data.tokenizers import load_tokenizer
from tests.data.prep.corpora import left_behind, prepare, sentences_of, settings_for, write_jsonl

JSONL = b'{"id": 1, "text": "The cat sat. It ran."}\n{"id": 2, "text": "A dog sat."}\n'
READ = [["the cat sat .", "it ran ."], ["a dog sat ."]]
ROWS = [{"id": 1, "title": "a", "body": "The cat sat. It ran."}, {"id": 2, "title": "b", "body": "A dog sat."}]
GERMAN = "Die Straße in München ist schön. Über Köln fliegt ein Vogel.\n\nEin anderes Dokument für später.\n"
ENGLISH = "“Don’t go,” she said – it’s late.\n\nThe café isn’t open.\n"  # noqa: RUF001
RUSSIAN = "Я кот. Имени у меня ещё нет. Где я родился, не знаю.\n\nЭто второй документ.\n" * 5  # noqa: RUF001
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n\n二つ目の文書。\n" * 5
CHINESE = "我是一只猫。我还没有名字。我不知道我在哪里出生。\n\n第二个文件。\n" * 5


def tar_bytes(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "The cat sat.")
    return buffer.getvalue()


# name of the file, its bytes; both documents of READ must come out
CERTAIN = [
    ("no_suffix", gzip.compress(JSONL)),
    ("dump.bin.1", bz2.compress(JSONL)),
    ("no_suffix", lzma.compress(JSONL)),
    ("no_suffix", zstandard.compress(JSONL)),
    ("in.jsonl.gz", JSONL),  # decompressed by the program that fetched it
    ("in.jsonl.gz", zstandard.compress(JSONL)),
    ("in.jsonl", JSONL.replace(b"sat. It", b"sat.\x00 It")),
    ("in.txt", b"The cat sat.\x00 It ran.\n\nA dog sat.\n"),
    ("in.jsonl", b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n")),
    ("in.tar", tar_bytes({"realnews/realnews.jsonl": JSONL})),
    ("in.tar", tar_bytes({"train/00.jsonl.zst": zstandard.compress(JSONL)})),
    ("in.tgz", tar_bytes({"a.jsonl.gz": gzip.compress(JSONL)}, "w:gz")),
    ("in.tar", tar_bytes({"a.txt": b"The cat sat. It ran.", "b.txt.gz": gzip.compress(b"A dog sat.")})),
    (
        "in.tar",
        tar_bytes({"AA/wiki_00": b'<doc id="1">\nThe cat sat. It ran.\n</doc>\n<doc id="2">\nA dog sat.\n</doc>\n'}),
    ),
    ("in.tar.bz2", bz2.compress(tar_bytes({"a.tar.xz": tar_bytes({"b.jsonl": JSONL}, "w:xz")}))),
]


@pytest.mark.parametrize(("name", "data"), CERTAIN, ids=[f"{i}-{name}" for i, (name, _data) in enumerate(CERTAIN)])
def test_what_is_certain_is_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    manifest = prepare(tmp_path, tmp_path / name)
    assert sentences_of(tmp_path / "out", load_tokenizer(tmp_path / "out-tokenizer")) == READ
    account = manifest["account"]
    assert (account["records"], account["documents"], account["skipped"]) == (2, 2, 0)
    assert (account["begin_byte"], account["end_byte"]) == (0, len(data))


CSV = 'id,title,body\n1,a,"The cat, sat.\nIt ran."\n2,b,"A ""dog"" sat."\n'
TSV = "id\ttitle\tbody\n1\ta\tThe cat sat.\n2\tb\tA dog sat.\n"
# name, bytes, options, what the sentence must say besides the file's name
REFUSED = [
    (
        "in.json",
        json.dumps(ROWS).encode(),
        {},
        r"one JSON array \(fields: id, title, body\).*\(jq -c '\.\[\]' \S*in\.json >",
    ),
    ("in.json", json.dumps(ROWS, indent=1).encode(), {}, r"one JSON array \(fields: id, title, body\)"),
    ("noname", json.dumps(ROWS, indent=4).encode(), {"format": "jsonl"}, r"one JSON array \(fields: id, title, body\)"),
    ("in.json.gz", gzip.compress(json.dumps(ROWS).encode()), {}, r"one JSON array \(fields: id, title, body\)"),
    (
        "in.json",
        json.dumps(ROWS[0], indent=2).encode(),
        {},
        r"JSON over several lines \(fields: id, title, body\).*\(jq -c \. ",
    ),
    ("in.json", json.dumps([{"text": "a" * 2_000_000}]).encode(), {}, r"one JSON array"),
    ("in.json", json.dumps({"data": [{"t": "a" * 2_000_000}]}, indent=1).encode(), {}, r"JSON over several lines"),
    ("in.json", b'{"text": "a"}{"text": "b"}', {}, r"several JSON objects a line \(fields: text\).*\(jq -c \. "),
    ("in.json", b'[\n{"text": "a"},\n{"text": "b"}\n]\n', {}, r"one JSON array \(fields: text\)"),
    ("in.json", b'{\n"data": [\n{"text": "a"}\n]\n}\n', {}, r"JSON over several lines \(fields: data\)"),
    (
        "in.json",
        b'{"text": "a"},\n{"text": "b"},\n',
        {},
        r"JSON objects with commas between them \(fields: text\).*\(sed ",
    ),
    (
        "in.jsonl",
        b'"The cat."\n"A dog."\n',
        {},
        r"no JSON objects, though it is named so.* --format text or --format lines",
    ),
    ("in.jsonl", b'{"text": "a"\n{"text": "b"\n', {}, r"no line that is a JSON object with a text"),
    (
        "in.jsonl",
        "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        {},
        r"`--text-key` must name a field of .*no 'text'; their fields are id, title, body\. Give --text-key body",
    ),
    (
        "in.jsonl.bz2",
        bz2.compress(JSONL),
        {"text_key": "body"},
        r"no 'body'; their fields are id, text\. Give --text-key text",
    ),
    ("in.jsonl", JSONL, {"text_key": "body", "format": "jsonl"}, r"no 'body'; their fields are id, text"),
    (
        "in.csv",
        CSV.encode(),
        {"text_key": "body"},
        r"a CSV table \(columns: id, title, body\).*csv\.DictReader.*--text-key",
    ),
    ("in.csv", b"text\nThe cat sat.\nA dog sat.\n", {}, r"a CSV table \(columns: text\)"),
    ("in.data", b"id,text\n1,The cat sat.\n2,A dog sat.\n", {}, r"a CSV table \(columns: id, text\).*--format lines"),
    ("in.tsv", TSV.encode(), {}, r"a TSV table \(columns: id, title, body\).*delimiter='\\t'.*--format lines"),
    ("in.txt", TSV.encode(), {}, r"a TSV table \(columns: id, title, body\)"),
    ("in.tsv.gz", gzip.compress(TSV.encode()), {}, r"a TSV table \(columns: id, title, body\)"),
    (
        "in.txt",
        GERMAN.encode("latin-1"),
        {},
        r"no UTF-8 \(7 stray bytes .* WINDOWS-1252 or Latin-1\).*\(iconv -f WINDOWS-1252 ",
    ),
    ("in.txt", GERMAN.encode("latin-1"), {"format": "text"}, r"iconv -f WINDOWS-1252 -t UTF-8"),
    ("in.txt.xz", lzma.compress(GERMAN.encode("latin-1")), {"format": "lines"}, r"iconv -f WINDOWS-1252 -t UTF-8"),
    ("in.jsonl", json.dumps({"text": GERMAN}, ensure_ascii=False).encode("latin-1"), {}, r"iconv -f WINDOWS-1252"),
    ("in.txt", ENGLISH.encode("cp1252"), {}, r"iconv -f WINDOWS-1252 -t UTF-8"),
    ("in.txt", RUSSIAN.encode("cp1251"), {}, r"text that is no UTF-8 .*iconv -f CP1251 -t UTF-8"),
    ("in.txt", RUSSIAN.encode("koi8-r"), {}, r"text that is no UTF-8 .*iconv -f KOI8-R -t UTF-8"),
    ("in.txt", JAPANESE.encode("shift_jis"), {}, r"text that is no UTF-8 .*iconv -f CP932 -t UTF-8"),
    ("in.txt", CHINESE.encode("gbk"), {}, r"text that is no UTF-8 .*iconv -f GB18030 -t UTF-8"),
    (
        "in.txt",
        GERMAN.encode("utf-16"),
        {},
        r"UTF-16 text, not UTF-8.*\(iconv -f UTF-16 -t UTF-8 \S*in\.txt > in\.utf8",
    ),
    ("in.txt", JAPANESE.encode("utf-16"), {"format": "text"}, r"iconv -f UTF-16 -t UTF-8"),
    ("in.jsonl", JSONL.decode().encode("utf-16-le"), {}, r"UTF-16LE text"),
    ("in.jsonl", JSONL.decode().encode("utf-16-be"), {}, r"UTF-16BE text"),
    ("in.jsonl.gz", gzip.compress(JSONL.decode().encode("utf-32")), {}, r"iconv -f UTF-32"),
    (
        "in.xml.7z",
        b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(range(256)),
        {},
        r"a 7z archive\. Unpack it \(7z x \S*in\.xml\.7z\)",
    ),
    ("in.zip", zip_bytes(), {}, r"a zip archive .*unzip"),
    ("in.txt", zip_bytes(), {"format": "text"}, r"a zip archive .*unzip"),
    ("in.rar", b"Rar!\x1a\x07\x01\x00" + bytes(100), {}, r"a rar archive"),
    ("in.lz4", b"\x04\x22\x4d\x18" + bytes(range(100)), {}, r"lz4 data\. Decompress it \(lz4 -d"),
    ("in.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(range(100)), {}, r"a PDF document.*pdftotext"),
    (
        "in.htm",
        b"<!DOCTYPE html>\n<html><body>\n\n<p>The cat sat.</p></body></html>\n",
        {},
        r"an HTML page.*--format text",
    ),
    (
        "in.xml",
        b'<?xml version="1.0"?>\n<feed>\n\n<entry>The cat.</entry></feed>\n',
        {},
        r"XML that is no MediaWiki export",
    ),
    ("in.warc.wet", b"WARC/1.0\r\nWARC-Type: warcinfo\r\n\r\nThe cat sat.\r\n", {}, r"a web archive \(WARC, WET\)"),
    ("in.sql", b"-- MySQL dump 10.19\n\nCREATE TABLE page;\n", {}, r"an SQL dump"),
    ("in.rtf", b"{\\rtf1\\ansi\n\nThe cat sat.}\n", {}, r"an RTF document"),
    (
        "in.jsonl",
        JSONL,
        {"format": "mediawiki"},
        r"`--format` must be the format of .* holds jsonl, but is mediawiki instead",
    ),
    ("in.txt", b"The cat.\n\nA dog.\n", {"format": "wikiextractor"}, r"holds text, but is wikiextractor instead"),
    (
        "in.tar",
        tar_bytes({"a.jsonl": JSONL}),
        {"format": "jsonl"},
        r"holds openwebtext, but is jsonl instead.*leave --format out",
    ),
    (
        "in.tar",
        tar_bytes({"a.json": json.dumps(ROWS).encode()}),
        {},
        r"1 with tar member that holds one JSON array \(fields: id,",
    ),
    (
        "in.tar",
        tar_bytes({"a.jsonl": JSONL}),
        {"text_key": "x"},
        r"tar member that holds JSON without the field 'x' \(fields: id, text\)",
    ),
    (
        "in.tar",
        tar_bytes({"a.txt": GERMAN.encode("utf-16")}),
        {},
        r"1 with tar member that holds UTF-16 text, not UTF-8",
    ),
]


@pytest.mark.parametrize(
    ("name", "data", "options", "message"), REFUSED, ids=[f"{i}-{row[0]}" for i, row in enumerate(REFUSED)]
)
def test_what_is_not_is_named(tmp_path, name, data, options, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(tmp_path, tmp_path / name, **options)
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path, keep={name, "vocab.txt"}) == []


@pytest.mark.parametrize(("name", "text"), [("in.csv", CSV), ("in.tsv", TSV)])
def test_the_command_for_a_table_makes_json_lines(tmp_path, name, text):
    """The sentence's own command, run by a shell, gives what the csv module reads."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.raises(ValueError, match="python -c") as caught:
        prepare(tmp_path, tmp_path / name)
    command = str(caught.value).partition("JSON lines (")[2].rpartition(") and name")[0]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=60)
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    assert [row["title"] for row in rows] == ["a", "b"] and all("sat" in row["body"] for row in rows)
    assert shlex.split(command)[0] == "python"


# text that resembles something else and must be read
PLAIN = [
    (b"[1] The cat sat.\n[2] A dog sat.\n", "lines"),
    (b"[[The cat]] sat.\n\nA dog sat.\n", "text"),
    (b"{The cat} sat.\n{A dog} sat.\n", "lines"),
    (b"Hello, world\nFoo, bar\nThe cat, the dog\n", "lines"),
    (b"ORC and OBJ are words.\nBZh1 too.\n", "lines"),
    (b"BZh9 is no archive.\nPK neither.\n", "lines"),
    (b"The c\xffat sat.\n\nA dog sat.\n", "text"),
    ("Ein \u00e4ltrer Text\n\n\u00fc".encode() + b" mit \xc3 einem \xe4Fehler\n", "text"),
    (b"The cat\tsat.\nA dog sat.\n", "lines"),
    (b'"The cat," he said, "sat."\n"A dog," she said.\n', "lines"),
]


@pytest.mark.parametrize(("data", "expected"), PLAIN)
def test_text_that_resembles_something_else_is_text(tmp_path, data, expected):
    (tmp_path / "in.txt").write_bytes(data)
    assert detect_format(tmp_path / "in.txt") == expected
    assert prepare(tmp_path, tmp_path / "in.txt")["num_documents"] == 2 + data.count(b"Foo")


def test_white_space_longer_than_the_sample_hides_no_text(tmp_path):
    for name, pack in (("in.txt", bytes), ("in.txt.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b"\n" * (SAMPLE_BYTES + 10) + b"The cat sat.\n\nA dog sat.\n"))
        assert prepare(tmp_path, tmp_path / name, overwrite=True)["num_documents"] == 2


def test_the_first_lines_of_json_may_be_broken(tmp_path):
    (tmp_path / "in").write_bytes(b"{broken\n" + JSONL)
    assert detect_format(tmp_path / "in") == "jsonl"
    manifest = prepare(tmp_path, tmp_path / "in")
    assert manifest["num_documents"] == 2 and manifest["skipped"]["not JSON"]["count"] == 1


def test_what_is_left_out_is_counted(tmp_path):
    """In a folder, in an archive, in a document, in a run."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.tar").write_bytes(
        tar_bytes({"a.txt": b"The cat sat.", "b.md": b"# no", "c.txt": b" ", "d.png": bytes(99)})
    )
    (folder / "b.wiki").write_text('stray\n<doc id="1">\nA dog.\n</doc>\nstray\n<doc id="2">\nA cat.\n</doc>\n')
    (folder / "c.jsonl").write_bytes(
        JSONL.replace(b"sat. It", b"sat.\x00 It") + b'{"text": "\\u0301"}\n{"text": "\\ufffd\\nA cat."}\n'
    )
    (folder / "d.html").write_text("<html>")
    (folder / ".e").write_text("no")
    (folder / "f.txt").touch()
    manifest = prepare(tmp_path, folder)
    counts = {part: {key: entry["count"] for key, entry in manifest[part].items()} for part in ("skipped", "repaired")}
    assert counts["skipped"].pop("no text") == 2
    assert counts == {
        "skipped": {
            "tar member that is neither .txt nor in a known format (.md)": 1,
            "tar member that holds binary data": 1,
            "text outside <doc>": 1,
        },
        "repaired": {
            "text outside <doc>": 1,
            "control characters inside a JSON string": 1,
            "sentences left out, of characters that the tokenizer drops": 1,
        },
    }
    assert {key: entry["count"] for key, entry in manifest["left_out"].items()} == {
        "named .html": 1,
        "hidden": 1,
        "empty": 1,
    }
    account = manifest["account"]
    assert (account["records"], account["documents"], account["skipped"]) == (11, 6, 5)
    assert account["end_byte"] == sum(path.stat().st_size for path in folder.glob("[abcf].*"))


def test_the_text_of_another_programs_corpus_is_no_output(tmp_path):
    """Beside a .bin and an .idx of its name, as Megatron's own tools leave it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "wiki.json", ["The cat sat.", "A dog sat."])
    for suffix in (".bin", ".idx"):
        (folder / f"wiki{suffix}").write_bytes(b"x")
    assert (
        prepare(tmp_path, folder)["num_documents"]
        == prepare(tmp_path, folder / "*.json", overwrite=True)["num_documents"]
        == 2
    )


def test_an_account_that_does_not_close_publishes_nothing(tmp_path, monkeypatch):
    """A reader that loses its last record, and a plan that loses its last chunk: what the account is for."""
    source = write_jsonl(tmp_path / "in.jsonl", [f"The cat {i} sat." for i in range(500)])
    monkeypatch.setattr(records, "CHUNK_BYTES", 2000)

    def lose_a_chunk(self):
        pairs = list(original(self))
        return iter(pairs[:-1])

    def lose_a_document(result, _seen):
        result.document_sentences = result.document_sentences[:-1]
        return result

    from megatron_alum.data import pipeline
    from megatron_alum.data.plan import InputPlan

    original = InputPlan.chunks
    with monkeypatch.context() as patch:
        patch.setattr(InputPlan, "chunks", lambda self, *_next: lose_a_chunk(self))
        with pytest.raises(OpenAccount, match=r"files have bytes 0 to \d+, but bytes 0 to \d+ were read"):
            prepare(tmp_path, source)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "drop_duplicates", lose_a_document)
        with pytest.raises(OpenAccount, match=r"500 records were read, but \d+ documents kept and 0 skipped"):
            prepare(tmp_path, source, deduplicate=True, checkpoint_mb=0)
    assert left_behind(tmp_path, keep={"in.jsonl", "vocab.txt"}) == []
    account = Account()
    account.add(3, (0, 10))
    for interval in ((9, 20), (11, 20)):
        with pytest.raises(OpenAccount, match="passed over or read twice"):
            account.add(1, interval)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", [f"The cat {i} sat." for i in range(500)])
    monkeypatch.setattr(records, "CHUNK_BYTES", 2000)
    settings = settings_for(tmp_path, source)
    size = source.stat().st_size
    append = Journal.append

    def change(journal, *args):
        append(journal, *args)
        source.write_bytes(source.read_bytes()[: size // 2])

    monkeypatch.setattr(Journal, "append", change)
    with pytest.raises(ValueError, match=r"must (keep its \d+ bytes while it is read|be read to its end)"):
        preprocess(settings, show_progress=False)


def test_merging_checks_that_shards_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_BYTES", 2000)
    source = write_jsonl(tmp_path / "in.jsonl", [f"The cat {i} sat." for i in range(500)] + [""])
    whole = prepare(tmp_path, source, output_prefix=str(tmp_path / "whole"))
    parts = [str(tmp_path / f"part-{i}") for i in range(3)]
    for i, prefix in enumerate(parts):
        prepare(tmp_path, source, output_prefix=prefix, num_shards=3, shard_id=i)
    merged = merge_shards(parts, str(tmp_path / "merged"), show=False)
    assert merged["account"] == whole["account"] and merged["account"]["skipped"] == 1
    path = tmp_path / "part-1.json"
    manifest = json.loads(path.read_text())
    manifest["account"]["end_byte"] -= 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(OpenAccount, match="passed over or read twice"):
        merge_shards(parts, str(tmp_path / "again"), show=False)
    assert not list(tmp_path.glob("again*"))


@pytest.mark.parametrize("texts", [["The cat sat."] * 40, ["The cat sat."] * 40 + ["A dog. It ran."]])
def test_a_corpus_without_pairs_is_warned_about_twice(tmp_path, caplog, texts):
    """BookCorpus' layout: a sentence a line without blank lines."""
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    manifest = prepare(tmp_path, tmp_path / "in.txt")
    lines = list(summary(str(tmp_path / "out"), manifest))
    assert "has two sentences" in lines[-1] and "blank line" in lines[-1] and "--format text" in lines[-1]
    for objective, expected in (("nsp", True), ("none", False)):
        caplog.clear()
        config = DataConfig(data_path=(str(tmp_path / "out"),), objective=objective, sampler="python")
        with caplog.at_level(logging.WARNING):
            open_datasets(config, model_type="bert", seq_length=64, train_samples=10, seed=1)
        assert ("has two sentences" in caplog.text) == expected


def test_the_summary_says_what_came_out(tmp_path):
    texts = ["The cat sat. It ran.", "A dog sat.", "I sat. He ran. She sat. It ran. And then!", "\u0301"]
    manifest = prepare(tmp_path, write_jsonl(tmp_path / "in.jsonl", texts))
    assert list(summary(str(tmp_path / "out"), manifest)) == [
        "records: 4 = 3 kept + 1 skipped",
        "skipped 1 documents: no text (first: \u0301)",
        "sentences a document: 2.7 on average, 2 in half of them, 5 at most; tokens a sentence: 3.2",
        "document 0: the cat sat. | it ran.",
        "document 1: a dog sat.",
    ]
    assert open_shards(tmp_path / "out").num_documents == 3


def test_stray_bytes_are_repaired_and_hinted_at(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"The cat \xff sat. It ran.\n\nThe dog ran.\n")
    manifest = prepare(tmp_path, tmp_path / "in.txt")
    lines = list(summary(str(tmp_path / "out"), manifest))
    assert any(line.startswith("repaired 1 documents: invalid UTF-8") for line in lines)
    assert any(line.startswith("warning: bytes that are no UTF-8 were replaced.") and "iconv" in line for line in lines)


def test_a_page_without_its_end_costs_no_other(tmp_path):
    """In one stream, and where it is the last of its streams."""
    page = "<page><title>T</title><ns>0</ns><id>{}</id><revision><text>The cat {} sat.</text></revision></page>\n"
    broken = "<page><title>T</title><id>7</id><revision><text>lost"
    parts = ["<mediawiki>\n" + page.format(1, 1) + broken, page.format(2, 2), "</mediawiki>\n"]
    for data in ("".join(parts).encode(), b"".join(bz2.compress(part.encode()) for part in parts)):
        (tmp_path / "in").write_bytes(data)
        reader = make_reader("mediawiki")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("megatron_alum.data.readers.mediawiki.STREAM_GROUP_BYTES", 20)
            items = [item for chunk in reader.chunks(tmp_path / "in") for item in reader.documents(chunk)]
        assert [item.id for item in items] == ["1", "7", "2"]
        assert [isinstance(item, Document) for item in items] == [True, False, True]
