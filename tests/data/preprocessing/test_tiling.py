"""No byte and no record is lost or read twice, wherever the boundaries of chunks, buffers, streams, files and shards
are.

Every case is compared with `simple_reader`, which reads the uncompressed bytes as a whole. The
sizes of chunks and buffers are made small, so that a few hundred bytes contain every boundary; one test uses the real
sizes.
"""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import tarfile
import xml.etree.ElementTree as ET
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_alum.data.preprocessing.account import Account
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.readers import base, mediawiki, openwebtext, records, streams
from megatron_alum.data.preprocessing.readers.base import Document, Rejected
from megatron_alum.data.preprocessing.settings import InputSettings

KINDS = ("jsonl", "lines", "text", "wikiextractor", "mediawiki")
HEAD, TAIL = '<mediawiki xmlns="x">\n<siteinfo/>\n', "</mediawiki>\n"


def written(kind, texts):
    """The bytes of a file of `kind` with these texts."""
    if kind == "jsonl":
        return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)).encode()
    if kind == "lines":
        return "".join(t + "\n" for t in texts).encode()
    if kind == "text":
        return "\n \n\n".join(texts).encode()
    if kind == "wikiextractor":
        return "".join(f'<doc id="{i}">\n{t}\n</doc>\n' for i, t in enumerate(texts)).encode()
    page = "<page><title>T</title><ns>0</ns><id>{}</id><revision><text>{}</text></revision></page>\n"
    return (HEAD + "".join(page.format(i, t) for i, t in enumerate(texts)) + TAIL).encode()


def simple_reader(kind, data):
    """The texts in `data`, read the plain way."""
    text = data.decode()
    if kind == "jsonl":
        return [json.loads(line)["text"] for line in text.split("\n") if line]
    if kind == "lines":
        return [line for line in text.split("\n") if line]
    if kind == "text":
        return [block for block in re.split(r"\n\s*\n", text) if block]
    if kind == "wikiextractor":
        return re.findall(r"<doc [^\n]*>\n(.*?)\n</doc>", text, re.DOTALL)
    return [page.findtext("{x}revision/{x}text") for page in ET.fromstring(text).iter("{x}page")]


def in_parts(compress, filler=b""):
    """A container of several members, streams or frames: `data` cut in three at uneven places."""

    def pack(data):
        bounds = [0, len(data) // 7, len(data) // 2 + 1, len(data)]
        return filler.join(compress(data[a:b]) for a, b in pairwise(bounds)) + filler

    return pack


SKIPPABLE = b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc"
CONTAINERS = {
    "plain": bytes,
    "gz": gzip.compress,
    "gz-members": in_parts(gzip.compress),
    "gz-padded": in_parts(gzip.compress, b"\0" * 8),
    "bz2": bz2.compress,
    "bz2-streams": in_parts(bz2.compress),
    "bz2-padded": lambda data: bz2.compress(data) + b"\0" * 40,
    "xz": lzma.compress,
    "xz-streams": in_parts(lzma.compress, b"\0" * 8),
    "zst": zstandard.compress,
    "zst-frames": in_parts(zstandard.compress, SKIPPABLE),
}


@pytest.fixture
def small(monkeypatch):
    """Chunks of 64 bytes, read 32 at a time from a file read 16 at a time; the coordinator decompresses everything."""
    for module in (records, base):
        monkeypatch.setattr(module, "CHUNK_BYTES", 64)
    monkeypatch.setattr(records, "_READ_BYTES", 32)
    monkeypatch.setattr(records, "SMALL_COMPRESSED_BYTES", 0)
    monkeypatch.setattr(streams, "_STORED_BYTES", 16)
    monkeypatch.setattr(streams, "_SCAN_BYTES", 11)
    monkeypatch.setattr(mediawiki, "STREAM_GROUP_BYTES", 50)
    monkeypatch.setattr(openwebtext, "_END_BYTES", 512)


def read_shard(paths, num_shards, shard_id, *, resume_at=None, **options):
    """(items, account) of one shard; with `resume_at` interrupted after that many chunks and planned again."""
    words = tuple(map(str, paths))
    asked = InputSettings(words, num_shards=num_shards, shard_id=shard_id, **options)
    plan, account, items = InputPlan(asked), Account(), []
    if resume_at is None:
        chunks = plan.chunks()
    else:
        begun = [chunk for _name, chunk in zip(range(resume_at), (pair for pair in plan.chunks()), strict=False)]
        chunks = iter(begun)
    last = (0, 0)
    for _ in range(2):
        for name, chunk in chunks:
            found = list(plan._reader(name).documents(chunk))
            account.add(len(found), plan.interval(chunk))
            items += found
            last = plan.index_of(chunk), chunk.ordinal + 1
        if resume_at is None:
            break
        plan = InputPlan(asked)
        chunks = plan.chunks(*last)
    return items, account, plan


def read_all(paths, num_shards, **options):
    """The items of all shards in order, after checking that their accounts are adjacent and balance."""
    items, reached = [], 0
    for shard_id in range(num_shards):
        found, account, plan = read_shard(paths, num_shards, shard_id, **options)
        items += found
        if account.end:
            assert account.begin == reached
            reached = account.end
        assert account.records == len(found)
    assert reached == plan.num_bytes
    return items


def texts_of(items):
    assert [item for item in items if isinstance(item, Rejected)] == []
    return [item.text.strip() for item in items]


def filler(draw, size):
    return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=size))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_around_every_border(tmp_path, small, kind, container):
    """Files that grow byte by byte over chunks, buffers and shards, two of them side by side."""
    draw = random.Random(f"{kind} {container}")  # each pair has different sizes
    texts = [filler(draw, size) for size in (5, 40, 1, 61, 3, 30)]
    for extra in range(draw.randrange(27), 135, 27 if (kind, container) != ("lines", "bz2") else 1):
        data = written(kind, [*texts, filler(draw, 1 + extra)])
        paths = [tmp_path / "a", tmp_path / "b"]
        paths[0].write_bytes(CONTAINERS[container](data))
        paths[1].write_bytes(CONTAINERS[container](written(kind, ["between", "files"])))
        expected = [*simple_reader(kind, data), "between", "files"]
        assert len(expected) == 9
        num_shards = 1 + extra % 7
        found = read_all(paths, num_shards, format=kind, resume_at=extra % 5 or None)
        assert texts_of(found) == expected, (extra, num_shards)


def one_space(text):
    """Wikitext, as a page shows it, has no two spaces in a row."""
    return " ".join(text.split())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_texts_in_any_number_of_shards(tmp_path, small, kind, container):
    @settings(max_examples=5, derandomize=True)
    @given(
        st.lists(st.text("abc xyz\u00fc\u732b", min_size=1, max_size=90).map(one_space).filter(len), max_size=9),
        st.integers(1, 7),
        st.none() | st.integers(0, 6),
        st.sampled_from([0, 10_000]),
    )
    def check(texts, num_shards, resume_at, small_bytes):
        records.SMALL_COMPRESSED_BYTES = small_bytes  # the fixture sets it back
        path = tmp_path / "in"
        data = written(kind, texts)
        path.write_bytes(CONTAINERS[container](data))
        if path.stat().st_size:
            assert texts_of(read_all([path], num_shards, format=kind, resume_at=resume_at)) == simple_reader(kind, data)

    check()


@pytest.mark.parametrize(
    ("kind", "suffix"), [("lines", ""), ("jsonl", ".gz"), ("lines", ".bz2"), ("text", ".xz"), ("wikiextractor", ".zst")]
)
def test_real_sizes(tmp_path, kind, suffix):
    """A file of several MiB that is one stream: its last chunk is complete when all of it has been read."""
    letters = "".join(random.Random(3).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=3_400_000))
    texts = [letters[i : i + 20_000] for i in range(0, len(letters), 20_000)]
    path = tmp_path / f"in{suffix}"
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}
    pack[".xz"] = lambda data: lzma.compress(data, preset=0)
    path.write_bytes(pack[suffix](written(kind, texts)))
    assert path.stat().st_size > records.SMALL_COMPRESSED_BYTES
    assert texts_of(read_all([path], 2, format=kind)) == texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("container", ["plain", "gz", "bz2-streams"])
def test_an_overlong_record_loses_no_other(tmp_path, small, monkeypatch, kind, container):
    for module in (records, mediawiki):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 300)
    monkeypatch.setattr(mediawiki, "_HEAD_BYTES", 40)
    path = tmp_path / "in"

    @settings(max_examples=25, derandomize=True)
    @given(st.lists(st.integers(1, 120) | st.integers(280, 900), min_size=1, max_size=7), st.integers(0, 10**6))
    def check(sizes, seed):
        texts = [filler(random.Random(seed + i), size) for i, size in enumerate(sizes)]
        path.write_bytes(CONTAINERS[container](written(kind, texts)))
        items = read_all([path], 1, format=kind)
        assert len(items) == len(texts)
        for item, text in zip(items, texts, strict=True):
            if isinstance(item, Document):
                assert item.text.strip() == text
            else:
                assert item.reason == base.OVERSIZE and len(text) > 300 - 110  # the tags of a page count too

    check()


def tar_of(members, mode="w"):
    """A tar of {name: bytes, None for a folder, or the target of a link}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
            elif data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else None)
    return buffer.getvalue()


def members(draw, number):
    """(members of an archive, the texts in them, the number of members that are no documents)."""
    found, texts, rejected = {}, [], 0
    for i in range(number):
        own = [filler(draw, draw.randrange(1, 200)) for _ in range(draw.randrange(1, 4))]
        kind = draw.choice(
            ["txt", "txt.gz", "jsonl", "jsonl.zst", "wiki", "inner.tar.xz", "md", "folder", "link", "long"]
        )
        name = f"{i}.{kind}" if kind != "long" else f"{'n' * 200}/{i}.txt"
        if kind in ("txt", "txt.gz", "long"):
            own = own[:1]
            data = own[0].encode()
        elif kind == "inner.tar.xz":
            data = tar_of({f"{j}.txt": text.encode() for j, text in enumerate(own)})
        elif kind in ("folder", "link", "md"):
            rejected += kind != "folder"
            own, data = [], {"folder": None, "link": "0.txt", "md": b"# Read me\n"}[kind]
        else:
            data = written("wikiextractor" if kind == "wiki" else "jsonl", own)
        packing = {".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress}.get(name[-3:], bytes)
        packing = zstandard.compress if name.endswith(".zst") else packing
        found[name] = packing(data) if isinstance(data, bytes) else data
        texts += own
    return found, texts, rejected


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("large", [0, 100, 10**6])
def test_tars(tmp_path, small, monkeypatch, container, large):
    """Members of every kind, in groups and as large ones, by shards and resumed; members that are not text are
    counted."""
    monkeypatch.setattr(records, "CHUNK_BYTES", 700)
    path = tmp_path / "in.tar"
    for seed in random.Random(f"{container} {large}").sample(range(1, 6), 2):
        found, texts, rejected = members(random.Random(seed), 3 * seed)
        path.write_bytes(CONTAINERS[container](tar_of(found)))
        monkeypatch.setattr(records, "SMALL_COMPRESSED_BYTES", large)
        for num_shards, resume_at in ((1, None), (1 + seed % 7, seed % 3)):
            items = read_all([path], num_shards, resume_at=resume_at)
            assert [item.text.strip() for item in items if isinstance(item, Document)] == texts
            assert sum(isinstance(item, Rejected) for item in items) == rejected


@pytest.mark.parametrize("num_rows", [0, 1, 7, 20])
def test_parquet(tmp_path, num_rows):
    rows = [{"id": str(i), "text": f"text {i}"} for i in range(num_rows)]
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    for group_rows in (1, 3, 100):
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet", row_group_size=group_rows)
        for num_shards in range(1, 8):
            for resume_at in (None, num_shards % 3):
                found = read_all([tmp_path / "a.parquet"], num_shards, resume_at=resume_at)
                assert texts_of(found) == [row["text"] for row in rows]


_PART_STARTS = rb"\x1f\x8b|BZh9|\xfd7zXZ|\x28\xb5\x2f\xfd|\0+|" + re.escape(SKIPPABLE)


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "plain"])
@pytest.mark.parametrize("small_bytes", [0, 10_000])
def test_a_damaged_container_is_an_error_wherever_it_is_cut(tmp_path, small, monkeypatch, container, small_bytes):
    """Also if something follows its end: Python's own files would ignore that and everything after it."""
    monkeypatch.setattr(records, "SMALL_COMPRESSED_BYTES", small_bytes)
    data = written("jsonl", [filler(random.Random(1), 200) for _ in range(4)])
    whole = CONTAINERS[container](data)
    # where a part of it ends, the file is whole and shorter: the account cannot know better
    ends = {len(whole.rstrip(b"\0"))} | {match.start() for match in re.finditer(_PART_STARTS, whole)}
    for cut in range(12, len(whole.rstrip(b"\0")), 37):
        if any(0 <= cut - end <= len(SKIPPABLE) for end in ends):
            continue
        (tmp_path / "in").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_all([tmp_path / "in"], 1, format="jsonl")
    for behind in (b"garbage", bytes(16) + b"garbage", b"\xff" * 40):
        (tmp_path / "in").write_bytes(whole + behind)
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_all([tmp_path / "in"], 1, format="jsonl")


def test_joined_tars_are_refused(tmp_path):
    one, two = tar_of({"a.txt": b"one"}), tar_of({"b.txt": b"two"})
    for name, pack in (("in.tar", bytes), ("in.tar.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(one + two))
        with pytest.raises(
            ValueError, match="something follows its end; if archives were concatenated, give each separately"
        ):
            read_all([tmp_path / name], 1)
