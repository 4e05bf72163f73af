"""The pipeline as a whole: what comes out of what, however many workers, formats, compressions and interruptions."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from megatron_alum.data.preprocessing import schedulers
from megatron_alum.data.preprocessing.journal import Journal
from megatron_alum.data.preprocessing.merge import merge_shards
from megatron_alum.data.preprocessing.readers import records
from megatron_alum.data.shards.files import open_shards, shard_paths
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
from tests.data.preprocessing.corpora import ARTICLES, prepare, sentences_of, write_jsonl, write_vocab

ROOT = Path(__file__).parents[3]

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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_workers_give_the_same_bytes(tmp_path, monkeypatch, method):
    monkeypatch.setattr(schedulers, "_start_method", lambda: method)
    monkeypatch.setattr(records, "CHUNK_BYTES", 10_000)
    texts = [f"The cat {i} sat. The dog {i % 7} ran far away!" for i in range(3000)]
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    prepare(tmp_path, source, output_prefix=str(tmp_path / "one"), workers=1)
    prepare(tmp_path, source, output_prefix=str(tmp_path / "two"), workers=2)
    assert parts(tmp_path, "one") == parts(tmp_path, "two")
    assert open_shards(tmp_path / "two", verify=True).num_documents == len(texts)


def test_workers_are_forked_only_without_threads():
    with ThreadPoolExecutor(1) as threads:
        threads.submit(int).result()
        assert schedulers._start_method() == "spawn"
    alone = "import sys; from megatron_alum.data.preprocessing.schedulers import _start_method; print(_start_method())"
    found = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == ("fork" if sys.platform == "linux" and sys.version_info >= (3, 11) else "spawn")


def test_the_tool_imports_neither_torch_nor_transformers(tmp_path):
    """They take longer than 40 MB of text: a run from a vocabulary file or a folder it wrote must not need them."""
    source, vocab = write_jsonl(tmp_path / "in.jsonl", ARTICLES), write_vocab(tmp_path)
    for number, words in enumerate((["--vocab-file", str(vocab)], ["--tokenizer", str(tmp_path / "out0-tokenizer")])):
        given = ["--input", str(source), "--output-prefix", str(tmp_path / f"out{number}"), "--workers", "2", *words]
        code = f"import runpy, sys; sys.argv = ['preprocess_data.py', *{given}]\n"
        code += "runpy.run_path('tools/preprocess_data.py', run_name='__main__')\n"
        code += "print(sorted({'torch', 'transformers', 'megatron.core'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


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


@pytest.mark.parametrize("form", ["", "/**"], ids=["folder", "glob"])
def test_the_output_may_lie_in_the_input_folder(tmp_path, form):
    """Later runs, with the same prefix or another, read the texts alone, not what the first one wrote."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text(" ".join(ARTICLES) * 20 + "\n\n" + ARTICLES[0])
    (folder / "my-punkt").mkdir()
    (folder / "my-punkt" / "b.txt").write_text(ARTICLES[1])  # a user's folder that is only named like one of ours
    options = {"sentence_splitter": "punkt", "train_punkt": True}
    first = prepare(tmp_path, f"{folder}{form}", output_prefix=str(folder / "out"), **options)
    assert first["num_documents"] == 3 and (folder / "out-punkt").is_dir()
    (folder / "index-cache").mkdir()  # of training: the rows of an epoch and their description
    (folder / "index-cache" / "out-0.npy").write_bytes(b"\x93NUMPY" + bytes(99))
    (folder / "index-cache" / "out-0.json").write_text('{"epoch": 0}')
    again = prepare(tmp_path, f"{folder}{form}", output_prefix=str(folder / "out"), overwrite=True, **options)
    other = prepare(tmp_path, f"{folder}{form}", output_prefix=str(folder / "x-0"), **options)
    assert first == again == other


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


LINES, BLOCKS = "".join(f"The cat {i} sat.\n" for i in range(56)), "The cat sat.\nIt ran.\nA dog sat.\n\n" * 8
MIXED = {
    "a.txt.gz": (LINES, 56),
    "b.txt": (f"{LINES}" * 8, 448),
    "c.txt.gz": (BLOCKS, 8),
    "d.txt.gz": (FORMATS["in.jsonl"], 3),
    "e.txt.bz2": (WIKIEXTRACTOR, 3),
    "f.txt.xz": ("", 0),
}


def test_a_files_format_does_not_depend_on_its_neighbours(tmp_path, monkeypatch):
    """Compressed files of one folder and suffix in different formats: read alone, together, in shards and resumed."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    alone = b""
    for name, (text, documents) in MIXED.items():
        (folder / name).write_bytes(COMPRESSIONS[Path(name).suffix.replace(".txt", "")](text.encode()))
        if documents:
            prefix = str(tmp_path / f"alone-{name}")
            assert prepare(tmp_path, folder / name, output_prefix=prefix)["num_documents"] == documents
            alone += Path(f"{prefix}.bin").read_bytes()
    whole = prepare(tmp_path, folder, output_prefix=str(tmp_path / "whole"))
    assert whole["num_documents"] == sum(documents for _text, documents in MIXED.values())
    assert (tmp_path / "whole.bin").read_bytes() == alone
    shards = [str(tmp_path / f"part-{i}") for i in range(2)]
    for shard_id, prefix in enumerate(shards):
        prepare(tmp_path, folder, output_prefix=prefix, num_shards=2, shard_id=shard_id)
    merge_shards(shards, str(tmp_path / "merged"), show=False)
    for role in ("bin", "idx"):
        assert parts(tmp_path, "merged")[role] == parts(tmp_path, "whole")[role]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "checkpoint", _stop_after(Journal.checkpoint, 2))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, folder, checkpoint_mb=0)
    prepare(tmp_path, folder, resume=True)
    assert parts(tmp_path) == parts(tmp_path, "whole")


def _stop_after(method, calls):
    """`method`, interrupted at the end of its `calls`-th call."""
    seen = iter(range(1, 1000))

    def wrapped(self):
        method(self)
        if next(seen) == calls:
            raise KeyboardInterrupt

    return wrapped
