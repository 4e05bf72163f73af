"""Indexed shards: the bytes of our index against megatron-core's own builder, and every way the parts can not fit."""

import json
import shutil

import numpy as np
import pytest

from megatron_alum.data.shards.files import open_shards, read_index, verify_checksums, write_index
from tests.data.preprocessing.corpora import ARTICLES, prepare, write_jsonl


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    prepare(folder, write_jsonl(folder / "in.jsonl", ARTICLES))
    return folder


@pytest.fixture
def copy(corpus, tmp_path):
    """A copy of the corpus to damage."""
    for name in ("out.bin", "out.idx", "out.json"):
        shutil.copy(corpus / name, tmp_path / name)
    shutil.copytree(corpus / "out-tokenizer", tmp_path / "out-tokenizer")
    return tmp_path


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_index_bytes_equal_megatrons_builder(tmp_path, dtype):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 9, size=rng.integers(1, 6)) for _ in range(200)]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.dtype(dtype).type)
    for lengths in documents:
        builder.add_document(np.zeros(lengths.sum(), dtype), lengths.tolist())
    builder.finalize(str(tmp_path / "theirs.idx"))
    np.concatenate(documents).astype(np.int32).tofile(tmp_path / "lengths")
    np.cumsum([len(d) for d in documents]).astype(np.int64).tofile(tmp_path / "documents")
    write_index(tmp_path / "ours.idx", np.dtype(dtype), tmp_path / "lengths", tmp_path / "documents")
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


def test_stock_reader_gives_the_same_sentences(corpus):
    shards = open_shards(corpus / "out", verify=True)
    own = np.fromfile(corpus / "out.bin", shards.index.dtype)
    assert shards.num_documents == 3 and shards.num_sentences == len(shards.indexed) == 6
    assert np.concatenate([shards.indexed[i] for i in range(6)]).tolist() == own.tolist()
    assert shards.indexed.document_indices.tolist() == [0, 3, 5, 6]


def test_missing_parts_are_named(copy):
    for name in ("out.bin", "out.idx", "out.json", "out-tokenizer"):
        path = copy / name
        path.rename(copy / "away")
        with pytest.raises(ValueError, match=f"{name}` must exist"):
            open_shards(copy / "out")
        (copy / "away").rename(path)


def test_bin_of_another_size(copy):
    with (copy / "out.bin").open("ab") as stream:
        stream.write(b"\0\0")
    with pytest.raises(ValueError, match=r"out\.bin` must have the \d+ bytes that .* describes, but has \d+ instead"):
        open_shards(copy / "out")


def test_truncated_index(copy):
    data = (copy / "out.idx").read_bytes()
    for size in (0, 20, len(data) - 8):
        (copy / "out.idx").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"out\.idx` must be a"):
            open_shards(copy / "out")


def test_index_of_documents_that_do_not_end_with_the_sentences(copy):
    data = bytearray((copy / "out.idx").read_bytes())
    data[-8:] = (5).to_bytes(8, "little")
    (copy / "out.idx").write_bytes(data)
    with pytest.raises(ValueError, match="must bound its documents"):
        open_shards(copy / "out")


def test_manifest_of_another_corpus(copy):
    manifest = json.loads((copy / "out.json").read_text())
    for name, value in (("num_documents", 7), ("dtype", "int32")):
        (copy / "out.json").write_text(json.dumps({**manifest, name: value}))
        with pytest.raises(ValueError, match=f"`{name}` in .* must be"):
            open_shards(copy / "out")
    for text in ("[]", "{", '{"manifest_version": 99}'):
        (copy / "out.json").write_text(text)
        with pytest.raises(ValueError, match="must be a"):
            open_shards(copy / "out")


def test_verify_finds_one_changed_bit(copy):
    data = bytearray((copy / "out.bin").read_bytes())
    data[3] ^= 1
    (copy / "out.bin").write_bytes(data)
    open_shards(copy / "out")
    with pytest.raises(ValueError, match=r"out\.bin` must have SHA-256"):
        open_shards(copy / "out", verify=True)
    shutil.rmtree(copy / "out-tokenizer")
    with pytest.raises(ValueError, match=r"must have SHA-256|must exist"):
        verify_checksums(copy / "out", json.loads((copy / "out.json").read_text()))


def test_empty_index_reads_as_empty(tmp_path):
    (tmp_path / "none").touch()
    write_index(tmp_path / "x.idx", np.dtype("uint16"), tmp_path / "none", tmp_path / "none")
    index = read_index(tmp_path / "x.idx")
    assert (index.num_sentences, index.num_documents) == (0, 0)
