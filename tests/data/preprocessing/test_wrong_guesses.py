"""Files that are not what they seem: read if that is certain, else refused with one sentence naming what was found
and the remedy.

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
one sentence per line, no blank lines warned about by preprocessing and by pre-training
"""

import bz2
import gzip
import io
import json
import logging
import lzma
import tarfile
import zipfile

import pytest
import zstandard

from megatron_alum.config.data import DataConfig
from megatron_alum.data.preprocessing.readers.detect import detect_format
from megatron_alum.data.preprocessing.readers.sniff import SAMPLE_BYTES
from megatron_alum.data.sampling.dataset import open_datasets
from megatron_alum.data.shards.statistics import summary
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
from tests.data.preprocessing.corpora import left_behind, prepare, sentences_of

JSONL = b'{"id": 1, "text": "The cat sat. It ran."}\n{"id": 2, "text": "A dog sat."}\n'
READ = [["the cat sat .", "it ran ."], ["a dog sat ."]]
SHORT = [
    ("\u042d\u0442\u043e \u0434\u043e\u043c. \u041e\u043d \u0441\u0442\u0430\u0440.\n", "koi8-r"),
    ("\u042d\u0442\u043e \u0434\u043e\u043c. \u041e\u043d \u0441\u0442\u0430\u0440.\n", "cp1251"),
    ("\u3053\u308c\u306f\u672c\u3067\u3059\u3002\n", "euc_jp"),
    ("\u8fd9\u662f\u7b2c\u4e00\u53e5\u3002\u4e0d\u597d\u3002\n" * 3, "gbk"),
]
"""Texts of few bytes, none of them beside an ASCII letter."""
ROWS = [{"id": 1, "title": "a", "body": "The cat sat. It ran."}, {"id": 2, "title": "b", "body": "A dog sat."}]
GERMAN = (
    "Die Stra\u00dfe in M\u00fcnchen ist sch\u00f6n. \u00dcber K\u00f6ln fliegt ein Vogel.\n\nEin anderes"
    " Dokument f\u00fcr sp\u00e4ter.\n"
)
ENGLISH = "\u201cDon\u2019t go,\u201d she said \u2013 it\u2019s late.\n\nThe caf\u00e9 isn\u2019t open.\n"
RUSSIAN = 5 * (
    "\u042f \u043a\u043e\u0442. \u0418\u043c\u0435\u043d\u0438 \u0443 \u043c\u0435\u043d\u044f \u0435"
    "\u0449\u0451 \u043d\u0435\u0442. \u0413\u0434\u0435 \u044f \u0440\u043e\u0434\u0438\u043b\u0441"
    "\u044f, \u043d\u0435 \u0437\u043d\u0430\u044e.\n\n\u042d\u0442\u043e \u0432\u0442\u043e\u0440\u043e"
    "\u0439 \u0434\u043e\u043a\u0443\u043c\u0435\u043d\u0442.\n"
)
JAPANESE = 5 * (
    "\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002\u540d\u524d\u306f\u307e\u3060\u7121\u3044\u3002"
    "\u3069\u3053\u3067\u751f\u308c\u305f\u304b\u3068\u3093\u3068\u898b\u5f53\u304c\u3064\u304b\u306c"
    "\u3002\n\n\u4e8c\u3064\u76ee\u306e\u6587\u66f8\u3002\n"
)
CHINESE = 5 * (
    "\u6211\u662f\u4e00\u53ea\u732b\u3002\u6211\u8fd8\u6ca1\u6709\u540d\u5b57\u3002\u6211\u4e0d\u77e5"
    "\u9053\u6211\u5728\u54ea\u91cc\u51fa\u751f\u3002\n\n\u7b2c\u4e8c\u4e2a\u6587\u4ef6\u3002\n"
)


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


# name of the file, its bytes; both documents of READ must be read
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
        r"one JSON array \(fields: id, title, body\).*\(jq -c '\.\[\]' < \S*in\.json >",
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
        r"no JSON objects, despite its name.* --format text or --format lines",
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
    ("in.data", b"label;content\n1;The cat.\n2;A dog.\n", {}, r"a CSV table \(columns: label, content\)"),
    ("in.jsonl.gz.gz", gzip.compress(gzip.compress(JSONL)), {}, r"data that was compressed twice"),
    (
        "in.txt",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
        {},
        r"a Git LFS pointer .*git lfs pull",
    ),
    ("in.txt", b"The cat sat.\rIt ran.\r\rA dog sat.\r", {}, r"lines that end in CR alone\. Convert them \(tr "),
    ("in.tsv", TSV.encode(), {}, r"a TSV table \(columns: id, title, body\).*delimiter='\\t'.*--format lines"),
    ("in.txt", TSV.encode(), {}, r"a TSV table \(columns: id, title, body\)"),
    ("in.tsv.gz", gzip.compress(TSV.encode()), {}, r"a TSV table \(columns: id, title, body\)"),
    (
        "in.txt",
        GERMAN.encode("latin-1"),
        {},
        r"not UTF-8, probably WINDOWS-1252 or Latin-1 \(7 stray bytes .*\(iconv -f WINDOWS-1252 ",
    ),
    ("in.txt", GERMAN.encode("latin-1"), {"format": "text"}, r"iconv -f WINDOWS-1252 -t UTF-8"),
    ("in.txt.xz", lzma.compress(GERMAN.encode("latin-1")), {"format": "lines"}, r"iconv -f WINDOWS-1252 -t UTF-8"),
    ("in.jsonl", json.dumps({"text": GERMAN}, ensure_ascii=False).encode("latin-1"), {}, r"iconv -f WINDOWS-1252"),
    ("in.txt", ENGLISH.encode("cp1252"), {}, r"iconv -f WINDOWS-1252 -t UTF-8"),
    ("in.txt", RUSSIAN.encode("cp1251"), {}, r"text that is not UTF-8, .*iconv -f CP1251 -t UTF-8"),
    ("in.txt", RUSSIAN.encode("koi8-r"), {}, r"text that is not UTF-8, .*iconv -f KOI8-R -t UTF-8"),
    ("in.txt", JAPANESE.encode("shift_jis"), {}, r"text that is not UTF-8, .*iconv -f CP932 -t UTF-8"),
    ("in.txt", CHINESE.encode("gbk"), {}, r"text that is not UTF-8, .*iconv -f GB18030 -t UTF-8"),
    *(("in.txt", text.encode(code), {}, r"text that is not UTF-8") for text, code in SHORT),
    ("in.txt", (SHORT[2][0] + ENGLISH).encode("iso2022_jp", "ignore"), {}, r"ISO-2022-JP text.*iconv -f ISO-2022-JP"),
    (
        "in.txt",
        GERMAN.encode("utf-16"),
        {},
        r"UTF-16 text, not UTF-8.*\(iconv -f UTF-16 -t UTF-8 < \S*in\.txt > in\.utf8",
    ),
    ("in.txt", JAPANESE.encode("utf-16"), {"format": "text"}, r"iconv -f UTF-16 -t UTF-8"),
    ("in.jsonl", JSONL.decode().encode("utf-16-le"), {}, r"UTF-16LE text"),
    ("in.jsonl", JSONL.decode().encode("utf-16-be"), {}, r"UTF-16BE text"),
    ("in.jsonl.gz", gzip.compress(JSONL.decode().encode("utf-32")), {}, r"iconv -f UTF-32"),
    (
        "in.xml.7z",
        b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(range(256)),
        {},
        r"a 7z archive\. Unpack it \(7z x -oin\.xml \S*in\.xml\.7z\)",
    ),
    ("in.zip", zip_bytes(), {}, r"a zip archive .*unzip"),
    ("in.txt", zip_bytes(), {"format": "text"}, r"a zip archive .*unzip"),
    ("in.rar", b"Rar!\x1a\x07\x01\x00" + bytes(100), {}, r"a rar archive"),
    ("in.lz4", b"\x04\x22\x4d\x18" + bytes(range(100)), {}, r"lz4 data\. Decompress it \(lz4 -dc"),
    ("in.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(range(100)), {}, r"a PDF document.*pdftotext"),
    ("in.txt", b"<p>The cat sat.</p>\n<p>A dog sat.</p>\n", {}, r"an HTML page.*--format text"),
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
    (
        "in.tar",
        tar_bytes({"a.txt": GERMAN.encode("latin-1"), "b.txt": GERMAN[:-20].encode("latin-1")}),
        {},
        r"2 with tar member that holds text that is not UTF-8, probably WINDOWS-1252 or Latin-1\)",
    ),
    ("in.tar", tar_bytes({"a.txt": zip_bytes()}), {}, r"1 with tar member that holds a zip archive"),
    *(
        ("in.txt", text.encode(code), {}, f"{code.upper().replace('UTF-16-', 'UTF-16')} text, not UTF-8")
        for code in ("utf-16-le", "utf-16-be")
        for text in (
            "\u0414\u043e\u043c.\n",
            "The cat.\n",
            *(text for text, _code in SHORT),
            JAPANESE,
            CHINESE,
            RUSSIAN,
        )
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


# text that resembles something else and must be read
PLAIN = [
    (b"[1] The cat sat.\n[2] A dog sat.\n", "lines"),
    (b"[[The cat]] sat.\n\nA dog sat.\n", "text"),
    (b"{The cat} sat.\n{A dog} sat.\n", "lines"),
    (b"Hello, world\nFoo, bar\nThe cat, the dog\n", "lines"),
    (b"ORC and OBJ are words.\nBZh1 too.\n", "lines"),
    (b"BZh9 is no archive.\nPK neither.\n", "lines"),
    (b"The c\xffat sat.\n\nA dog sat.\n", "text"),
    (b"The c\xffat sat.\n\0\n\nA dog sat.\n", "text"),
    (b"\0\0\0\0The cat sat.\n\0\n\nA dog sat.\n\0\0", "text"),
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


def test_the_first_objects_may_lack_the_text(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"meta": [{"a": 1}]}\n' + JSONL)
    assert prepare(tmp_path, tmp_path / "in.jsonl")["num_documents"] == 2
    (tmp_path / "chats.jsonl").write_bytes(b'{"turns": [{"text": "a"}], "topic": "cats"}\n' * 2)
    with pytest.raises(ValueError, match=r"their fields are turns, topic\. Give --text-key topic"):
        prepare(tmp_path, tmp_path / "chats.jsonl", overwrite=True)


def test_the_first_lines_of_json_may_be_broken(tmp_path):
    (tmp_path / "in").write_bytes(b"{broken\n" + JSONL)
    assert detect_format(tmp_path / "in") == "jsonl"
    manifest = prepare(tmp_path, tmp_path / "in")
    assert manifest["num_documents"] == 2 and manifest["skipped"]["not JSON"]["count"] == 1


@pytest.mark.parametrize("texts", [["The cat sat."] * 40, ["The cat sat."] * 40 + ["A dog. It ran."]])
def test_a_corpus_without_pairs_is_warned_about_twice(tmp_path, caplog, texts):
    """BookCorpus' layout: one sentence per line without blank lines."""
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


@pytest.mark.parametrize(("strange", "is_warned"), [(1, False), (2, True)])
def test_a_vocabulary_of_another_text_is_warned_about(tmp_path, strange, is_warned):
    """38 tokens, of which 2 are unknown: 5.3 %; of 37 with one, 2.7 %."""
    text = "The cat sat. " * 9 + " ".join(["\u0444"] * strange)  # a letter that the vocabulary lacks
    (tmp_path / "in.txt").write_text(text + "\n")
    manifest = prepare(tmp_path, tmp_path / "in.txt")
    warned = [line for line in summary(str(tmp_path / "out"), manifest) if "unknown to the vocabulary" in line]
    assert manifest["num_tokens"] == 36 + strange
    assert (
        warned == [line for line in warned if line.startswith("warning: 5% of the tokens")]
        and bool(warned) == is_warned
    )


def test_stray_bytes_are_repaired_and_hinted_at(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"The cat \xff sat. It ran.\n\nThe dog ran.\n")
    manifest = prepare(tmp_path, tmp_path / "in.txt")
    lines = list(summary(str(tmp_path / "out"), manifest))
    assert any(line.startswith("repaired 1 documents: invalid UTF-8") for line in lines)
    assert any(
        line.startswith("warning: bytes that are not UTF-8 were replaced.") and "iconv" in line for line in lines
    )
