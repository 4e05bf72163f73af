"""The account of a run: what closes, what does not, and what is counted on the way.

A record is kept or skipped by reason; a part of one that is left out has its reason too; so has a file of a folder
that is not read. Shards meet where they were divided.
"""

import bz2
import json

import pytest

from megatron_alum.data.preprocessing import pipeline
from megatron_alum.data.preprocessing.account import Account, OpenAccount
from megatron_alum.data.preprocessing.journal import Journal
from megatron_alum.data.preprocessing.merge import merge_shards
from megatron_alum.data.preprocessing.pipeline import preprocess
from megatron_alum.data.preprocessing.plan import InputPlan
from megatron_alum.data.preprocessing.readers import records
from megatron_alum.data.preprocessing.readers.base import Document
from megatron_alum.data.preprocessing.readers.detect import make_reader
from megatron_alum.data.shards.files import open_shards
from megatron_alum.data.shards.statistics import summary
from tests.data.preprocessing.corpora import left_behind, prepare, settings_for, write_jsonl
from tests.data.preprocessing.test_wrong_guesses import JSONL, tar_bytes


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


def test_a_page_without_its_end_costs_no_other(tmp_path):
    """In one stream, and where it is the last of its streams."""
    page = "<page><title>T</title><ns>0</ns><id>{}</id><revision><text>The cat {} sat.</text></revision></page>\n"
    broken = "<page><title>T</title><id>7</id><revision><text>lost"
    parts = ["<mediawiki>\n" + page.format(1, 1) + broken, page.format(2, 2), "</mediawiki>\n"]
    for data in ("".join(parts).encode(), b"".join(bz2.compress(part.encode()) for part in parts)):
        (tmp_path / "in").write_bytes(data)
        reader = make_reader("mediawiki")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("megatron_alum.data.preprocessing.readers.mediawiki.STREAM_GROUP_BYTES", 20)
            items = [item for chunk in reader.chunks(tmp_path / "in") for item in reader.documents(chunk)]
        assert [item.id for item in items] == ["1", "7", "2"]
        assert [isinstance(item, Document) for item in items] == [True, False, True]
