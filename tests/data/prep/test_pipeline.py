"""The pipeline as a whole: what comes out of what, however many workers, formats, compressions and interruptions."""

import bz2
import gzip
import json
import lzma

import pytest
import zstandard

from megatron_alum.data.readers import records
from megatron_alum.data.shards import open_shards, shard_paths
from megatron_alum.data.tokenizers import load_tokenizer
from tests.data.prep.corpora import ARTICLES, prepare, sentences_of, write_jsonl

EXPECTED = [
    ["the cat sat on the mat .", "the dog ran far away .", "then it was the cat ."],
    ["a dog sat .", "she ran !"],
    ["it was the mat , and then he ran away ."],
]
WIKIEXTRACTOR = "".join(f'<doc id="{i}" url="u" title="t">\n{text}\n\n</doc>\n' for i, text in enumerate(ARTICLES))
FORMATS = {
    "in.jsonl": "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(ARTICLES)),
    "wiki_00": WIKIEXTRACTOR,
    "in.txt": "\n\n".join(ARTICLES) + "\n",
    "lines.txt": "\n".join(text.replace("\n", " ") for text in ARTICLES) + "\n",
}
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def parts(folder, prefix="out"):
    """The bytes of a finished corpus."""
    paths = shard_paths(folder / prefix)
    return {role: paths[role].read_bytes() for role in ("bin", "idx", "json")}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_every_format_in_every_compression_is_recognised(tmp_path, name, suffix):
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSIONS[suffix](FORMATS[name].encode()))
    manifest = prepare(tmp_path, path)
    tokenizer = load_tokenizer(tmp_path / "out-tokenizer")
    assert sentences_of(tmp_path / "out", tokenizer) == EXPECTED
    assert (manifest["num_documents"], manifest["num_sentences"], manifest["num_tokens"]) == (3, 6, 37)


def test_two_workers_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_BYTES", 10_000)
    texts = [f"The cat {i} sat. The dog {i % 7} ran far away!" for i in range(3000)]
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    prepare(tmp_path, source, output_prefix=str(tmp_path / "one"), workers=1)
    prepare(tmp_path, source, output_prefix=str(tmp_path / "two"), workers=2)
    assert parts(tmp_path, "one") == parts(tmp_path, "two")
    assert open_shards(tmp_path / "two", verify=True).num_documents == len(texts)


def test_folders_and_globs_are_taken_in_order(tmp_path):
    (tmp_path / "corpus" / "b").mkdir(parents=True)
    for name, text in (("a.jsonl", ARTICLES[0]), ("b/c.jsonl", ARTICLES[1]), ("z.jsonl", ARTICLES[2]), ("x.md5", "no")):
        write_jsonl(tmp_path / "corpus" / name, [text])
    (tmp_path / "corpus" / ".hidden").write_text("no")
    prepare(tmp_path, tmp_path / "corpus")
    tokenizer = load_tokenizer(tmp_path / "out-tokenizer")
    assert sentences_of(tmp_path / "out", tokenizer) == EXPECTED
    prepare(tmp_path, tmp_path / "corpus" / "**" / "*.jsonl", overwrite=True)
    assert sentences_of(tmp_path / "out", tokenizer) == EXPECTED


def test_manifest_says_what_was_done(tmp_path):
    manifest = prepare(tmp_path, write_jsonl(tmp_path / "in.jsonl", ARTICLES), min_document_chars=2)
    assert manifest["skipped"] == {} and manifest["settings"]["min_document_chars"] == 2
    assert manifest["settings"]["sentence_splitter"] == "rule"
    assert manifest["inputs"]["files"][0]["bytes"] == (tmp_path / "in.jsonl").stat().st_size
    assert manifest["tokenizer"] == {
        "kind": "wordpiece",
        "class": "BertTokenizer",
        "vocab_size": 98,
        "lower_case": True,
    }
    assert manifest["dtype"] == "uint16" and manifest["text_bytes"] == sum(map(len, ARTICLES))
    assert set(manifest["files"]) == {".bin", ".idx", "-tokenizer/tokenizer.json"}


def test_deduplication_keeps_the_first(tmp_path):
    texts = [ARTICLES[0], ARTICLES[1], ARTICLES[0] + " ", ARTICLES[2], ARTICLES[1]]
    manifest = prepare(tmp_path, write_jsonl(tmp_path / "in.jsonl", texts), deduplicate=True)
    assert sentences_of(tmp_path / "out", load_tokenizer(tmp_path / "out-tokenizer")) == EXPECTED
    assert manifest["skipped"]["duplicate"]["count"] == 2


@pytest.mark.parametrize("num_shards", [2, 3])
def test_shards_in_order_are_the_single_run(tmp_path, monkeypatch, num_shards):
    monkeypatch.setattr(records, "CHUNK_BYTES", 10_000)
    texts = [f"The cat {i} sat. The dog {i % 7} ran far away!" for i in range(3000)]
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    prepare(tmp_path, source, output_prefix=str(tmp_path / "all"))
    joined = b""
    documents = 0
    for shard_id in range(num_shards):
        prefix = str(tmp_path / f"part{shard_id}")
        documents += prepare(tmp_path, source, output_prefix=prefix, num_shards=num_shards, shard_id=shard_id)[
            "num_documents"
        ]
        joined += (tmp_path / f"part{shard_id}.bin").read_bytes()
    assert joined == (tmp_path / "all.bin").read_bytes() and documents == len(texts)
