"""Readers: every byte of a file lands in exactly one chunk, every record in exactly one document, in any
compression."""

import bz2
import io
import json
import tarfile
from itertools import pairwise
from typing import get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_alum.data.preprocessing.readers import detect, records
from megatron_alum.data.preprocessing.readers.base import Document, Rejected
from megatron_alum.data.preprocessing.readers.detect import READERS, detect_format, format_to_read, make_reader
from megatron_alum.data.preprocessing.readers.jsonl import JsonLinesReader
from megatron_alum.data.preprocessing.readers.streams import bz2_stream_starts
from megatron_alum.data.preprocessing.readers.text import BlankLineReader, LinesReader
from megatron_alum.data.preprocessing.readers.wikiextractor import WikiextractorReader
from megatron_alum.data.preprocessing.settings import InputSettings
from megatron_alum.data.shards.names import INVALID_UTF8
from tests.data.preprocessing.test_pipeline import COMPRESSIONS

CHARACTERS = st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="\ufeff")
TEXTS = st.lists(st.text(CHARACTERS, min_size=1, max_size=30), max_size=12)
WRITERS = {
    "jsonl": lambda texts: "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)),
    "text": lambda texts: "\n\n".join(texts),
    "lines": lambda texts: "\n".join(texts) + "\n",
    "wikiextractor": lambda texts: "".join(f'<doc id="{i}">\n{t}\n</doc>\n' for i, t in enumerate(texts)),
}


def read(reader, path):
    return [item for chunk in reader.chunks(path) for item in reader.documents(chunk)]


def texts_of(items):
    return [item.text.strip() for item in items if isinstance(item, Document)]


@pytest.mark.parametrize("name", WRITERS)
def test_no_record_is_lost_wherever_the_chunks_fall(tmp_path, monkeypatch, name):
    path = tmp_path / "in"

    @settings(max_examples=60, derandomize=True)
    @given(TEXTS, st.integers(1, 80), st.integers(1, 50))
    def check(texts, chunk_bytes, read_bytes):
        monkeypatch.setattr(records, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(records, "_READ_BYTES", read_bytes)
        path.write_bytes(WRITERS[name](texts).encode())
        items = read(make_reader(name), path)
        assert texts_of(items) == texts and len(items) == len(texts)

    check()


@pytest.mark.parametrize("reader", [JsonLinesReader(), BlankLineReader(), LinesReader(), WikiextractorReader()])
@settings(max_examples=60, derandomize=True)
@given(data=st.lists(st.sampled_from([b"a", b"\n", b"\n\n", b" ", b"<doc ", b"</doc>", b"{}"])).map(b"".join))
def test_blocks_joined_are_the_bytes(reader, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "CHUNK_BYTES", 5)
        patch.setattr(records, "_READ_BYTES", 3)
        blocks = list(reader.blocks(io.BytesIO(data)))
    assert b"".join(block for _size, block in blocks) == data
    assert [size for size, _block in blocks] == [len(block) for _size, block in blocks]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_large_compressed_file_is_cut_into_chunks(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(records, "SMALL_COMPRESSED_BYTES", 0)
    monkeypatch.setattr(records, "CHUNK_BYTES", 2000)
    texts = [f"article {i} " + "word " * (i % 50) for i in range(400)]
    path = tmp_path / ("in.jsonl" + suffix)
    path.write_bytes(COMPRESSIONS[suffix](WRITERS["jsonl"](texts).encode()))
    chunks = list(JsonLinesReader().chunks(path))
    assert len(chunks) > 10 and [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert all(a.offset <= b.offset for a, b in pairwise(chunks))
    assert texts_of(read(JsonLinesReader(), path)) == [text.strip() for text in texts]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_record_too_long_is_passed_over_alone(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(records, "SMALL_COMPRESSED_BYTES", 0)
    monkeypatch.setattr(records, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 5000)
    monkeypatch.setattr(records, "_READ_BYTES", 700)
    texts = ["short one", "x" * 40_000, "short two", "y" * 9000, "short three"]
    path = tmp_path / ("in.txt" + suffix)
    path.write_bytes(COMPRESSIONS[suffix](WRITERS["lines"](texts).encode()))
    items = read(LinesReader(), path)
    assert texts_of(items) == ["short one", "short two", "short three"]
    assert [type(item) for item in items] == [Document, Rejected, Document, Rejected, Document]
    assert "longer than 16 MiB" in items[1].reason


def test_wikiextractor_elements():
    def parse(text):
        return list(WikiextractorReader().parse(text.encode(), "here"))

    (first, second) = parse(
        '<doc id="1" url="u" title="A &amp; B">\nA\n\nText <doc in it.\n</doc>\n<doc id="2">\nB</doc>\n'
    )
    assert first == Document("1", "A\n\nText <doc in it.\n") and second == Document("2", "B")
    assert parse('<doc id="1">\nnever ended\n<doc id="2">\nB\n</doc>\n')[0] == Rejected("1", "<doc> without </doc>")
    assert parse('stray\n<doc id="2">\nB\n</doc>\n')[0] == Rejected("here", "text outside <doc>")
    assert parse("<doc id=2") == [Rejected("here", "unreadable <doc> line")]
    assert [item.id for item in parse('<doc id="1">\nA\n</doc>\nstray\n')] == ["1"]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("damage", [b"", b"\xff"])
def test_a_byte_order_mark_loses_no_record(tmp_path, name, damage):
    path = tmp_path / "in"
    path.write_bytes(b"\xef\xbb\xbf" + WRITERS[name](["one", "two"]).encode().replace(b"two", b"two" + damage))
    items = read(make_reader(detect_format(path)), path)
    assert detect_format(path) == name and texts_of(items) == ["one", "two" + "\ufffd" * len(damage)]


def test_numbers_and_nesting_beyond_python_are_not_json():
    data = b'{"id": 1, "text": "a"}\n{"id": ' + b"9" * 5000 + b', "text": "b"}\n' + b"[" * 100_000 + b"\n"
    items = list(JsonLinesReader().parse(data, "here"))
    assert items[0] == Document("1", "a")
    assert items[1:] == [Rejected(f"here, line {n} from there", "not JSON") for n in (2, 3)]


def test_damaged_documents_are_marked_and_their_neighbours_are_not():
    items = list(LinesReader().parse(b"good\nb\xffad\n", "here"))
    assert [item.repairs for item in items] == [(), (INVALID_UTF8,)] and items[1].text == "b\ufffdad"


def test_parquet_in_the_layout_of_wikimedia(tmp_path):
    rows = [{"id": str(i), "url": "u", "title": f"t{i}", "text": f"text {i}"} for i in range(700)]
    rows[3]["text"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    assert detect_format(tmp_path / "a.parquet") == "parquet"
    chunks = list(make_reader("parquet").chunks(tmp_path / "a.parquet"))
    assert len(chunks) == 3 and chunks[0].offset < chunks[1].offset < chunks[2].offset
    items = read(make_reader("parquet"), tmp_path / "a.parquet")
    assert items[3] == Rejected("3", "no string under 'text'")
    assert texts_of(items) == [f"text {i}" for i in range(700) if i != 3]
    with pytest.raises(ValueError, match=r"`--text-key` must name a column of .* \(id, url, title, text\)"):
        read(make_reader("parquet", text_key="body"), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-100])
    with pytest.raises(ValueError, match="must be a whole parquet file"):
        read(make_reader("parquet"), tmp_path / "cut.parquet")


def tar_of(files, mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("outer", ["w", "w:xz"])
def test_openwebtext_tar_of_xz_tars(tmp_path, monkeypatch, outer):
    monkeypatch.setattr(records, "CHUNK_BYTES", 100)
    inner = {
        f"openwebtext/subset{i}_data.xz": tar_of(
            {f"{i:03}-{j}.txt": f"page {i} {j}".encode() for j in range(3)}, "w:xz"
        )
        for i in range(4)
    }
    path = tmp_path / ("openwebtext.tar" + (".xz" if outer == "w:xz" else ""))
    path.write_bytes(tar_of(inner, outer))
    assert detect_format(path) == "openwebtext"
    chunks = list(make_reader("openwebtext").chunks(path))
    assert len(chunks) == 4
    assert texts_of(read(make_reader("openwebtext"), path)) == [f"page {i} {j}" for i in range(4) for j in range(3)]
    (tmp_path / "subset_data.xz").write_bytes(inner["openwebtext/subset2_data.xz"])  # a single inner archive
    assert detect_format(tmp_path / "subset_data.xz") == "openwebtext"
    assert texts_of(read(make_reader("openwebtext"), tmp_path / "subset_data.xz")) == [
        "page 2 0",
        "page 2 1",
        "page 2 2",
    ]
    (tmp_path / "cut.tar").write_bytes(path.read_bytes()[:-11_000] if outer == "w" else path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read(make_reader("openwebtext"), tmp_path / ("cut.tar" if outer == "w" else _renamed(tmp_path)))


def _renamed(folder):
    (folder / "cut.tar").rename(folder / "cut.tar.xz")
    return "cut.tar.xz"


def test_every_format_is_detected(tmp_path):
    heads = {
        "mediawiki": '<mediawiki xmlns="x"><siteinfo/></mediawiki>',
        "wikiextractor": '\ufeff<doc id="1">\nA\n</doc>',
        "jsonl": '  {"text": "a"}\n',
        "text": "one\n\ntwo\n",
        "lines": "one\ntwo\n",
    }
    for expected, text in heads.items():
        (tmp_path / expected).write_text(text)
        assert detect_format(tmp_path / expected) == expected
    assert set(heads) | {"parquet", "openwebtext", "stories"} == set(READERS)
    (tmp_path / "empty").touch()
    assert detect_format(tmp_path / "empty") is None


@pytest.mark.parametrize("inner", [".xz", ".txt"])
def test_small_compressed_files_are_recognised_where_they_are_read(tmp_path, monkeypatch, inner):
    """The coordinator decompresses nothing of them; a tar needs the reader's own chunks, here inside one chunk."""
    texts = {f"{i}.txt": f"page {i}".encode() for i in range(3)}
    members = (
        texts
        if inner == ".txt"
        else {f"{i}_data.xz": tar_of({name: texts[name]}, "w:xz") for i, name in enumerate(texts)}
    )
    (tmp_path / "a.xz").write_bytes(tar_of(members, "w:xz"))
    with monkeypatch.context() as patch:
        patch.setattr(detect, "open_stream", None)
        assert format_to_read(tmp_path / "a.xz") == "auto"
        chunks = list(make_reader("auto").chunks(tmp_path / "a.xz"))
    assert len(chunks) == 1
    assert texts_of(read(make_reader("auto"), tmp_path / "a.xz")) == ["page 0", "page 1", "page 2"]
    monkeypatch.setattr(records, "SMALL_COMPRESSED_BYTES", 0)
    assert format_to_read(tmp_path / "a.xz") == "openwebtext"


@pytest.mark.parametrize("begun", [0, 1, 7, 5000])
def test_a_stream_read_in_part_gives_the_same_blocks(begun):
    data = WRITERS["lines"]([f"line {i}" for i in range(400)]).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "CHUNK_BYTES", 100)
        patch.setattr(records, "_READ_BYTES", 30)
        whole = list(LinesReader().blocks(io.BytesIO(data)))
        stream = io.BytesIO(data)
        assert list(LinesReader().blocks(stream, stream.read(begun))) == whole and len(whole) > 20


def test_stream_starts_of_a_multistream_file(tmp_path):
    streams = [bz2.compress(bytes([i]) * 1000) for i in range(5)]
    (tmp_path / "a.bz2").write_bytes(b"".join(streams))
    starts = bz2_stream_starts(tmp_path / "a.bz2")
    assert starts == [sum(map(len, streams[:i])) for i in range(5)]


@pytest.mark.requires_shared_data
def test_real_json_lines(shared_data):
    path = shared_data / "wiki" / "jsonl" / "wiki_00.jsonl.bz2"
    assert detect_format(path) == "jsonl"
    items = read(make_reader("jsonl"), path)
    assert len(items) == 37 and items[0].id == "12" and items[0].text.startswith("Anarchism\n\nAnarchism is an anti-")


def test_the_command_line_takes_every_format_that_has_a_reader():
    """--format is a list of its own, which --help shows without importing the readers."""
    assert sorted(get_args(get_type_hints(InputSettings)["format"])) == sorted(["auto", *READERS])
