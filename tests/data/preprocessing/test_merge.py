"""Merging: shards of one input equal the single run; other corpora are joined in order; what does not fit is
refused."""

import pytest

from megatron_alum.data.preprocessing.merge import find_parts, merge_shards
from megatron_alum.data.preprocessing.readers import records
from megatron_alum.data.shards.files import open_shards
from tests.data.preprocessing.corpora import left_behind, prepare, write_jsonl
from tests.data.preprocessing.test_pipeline import EXPECTED, parts

TEXTS = [f"The cat {i} sat. The dog {i % 7} ran far away!" for i in range(2000)] + [""]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A single run `all` and its three shards `part-0` to `part-2`."""
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "CHUNK_BYTES", 5000)
        source = write_jsonl(folder / "in.jsonl", TEXTS)
        prepare(folder, source, output_prefix=str(folder / "all"))
        for i in range(3):
            prepare(folder, source, output_prefix=str(folder / f"part-{i}"), num_shards=3, shard_id=i)
    return folder


def test_shards_of_one_input_merge_into_the_single_run(shards, tmp_path):
    manifest = merge_shards(find_parts([str(shards / "part-*.json")]), str(tmp_path / "out"), show=False)
    merged, single = parts(tmp_path), parts(shards, "all")
    assert merged["bin"] == single["bin"] and merged["idx"] == single["idx"]
    assert manifest["skipped"]["no text"]["count"] == 1 and len(manifest["merged_from"]) == 3
    opened = open_shards(tmp_path / "out", verify=True)
    assert opened.num_documents == 2000 and left_behind(tmp_path, keep=set()) == [
        "out-tokenizer",
        "out.bin",
        "out.idx",
        "out.json",
    ]


def test_missing_or_swapped_shards_are_refused(shards, tmp_path):
    for order in ([0, 2], [1, 0, 2], [0, 1], [0, 1, 1, 2]):
        with pytest.raises(
            ValueError, match=r"must have every shard of an input once and in order, .*part-0 \(shard 0"
        ):
            merge_shards([str(shards / f"part-{i}") for i in order], str(tmp_path / "out"), show=False)
    assert left_behind(tmp_path, keep=set()) == []


def merged(folder, name, words):
    merge_shards([str(folder / word) for word in words], str(folder / name), show=False)
    return open_shards(folder / name, verify=True)


def test_merged_corpora_are_whole_corpora(tmp_path, monkeypatch):
    """The shards of two inputs, joined one input at a time and then with each other, or all at once."""
    monkeypatch.setattr(records, "CHUNK_BYTES", 5000)
    prepare(tmp_path, write_jsonl(tmp_path / "z.jsonl", TEXTS[:5]), output_prefix=str(tmp_path / "z"))
    for name in "xy":
        source = write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} {text}" for text in TEXTS[:400]])
        prepare(tmp_path, source, output_prefix=str(tmp_path / f"{name}-whole"))
        for i in range(2):
            prepare(tmp_path, source, output_prefix=str(tmp_path / f"{name}-{i}"), num_shards=2, shard_id=i)
        joined = merged(tmp_path, name.upper(), [f"{name}-0", f"{name}-1"])
        whole = open_shards(tmp_path / f"{name}-whole")
        for key in ("settings", "inputs", "num_documents"):
            assert joined.manifest[key] == whole.manifest[key]
    both = merged(tmp_path, "XY", ["X", "Y"])
    assert both.num_documents == 800 and both.manifest["settings"] == both.manifest["inputs"] == {}
    assert merged(tmp_path, "at-once", ["x-0", "x-1", "y-0", "y-1"]).num_documents == 800
    for doubled in (["X", "x-1"], ["X", "x-whole"], ["x-0", "y-1"]):
        with pytest.raises(ValueError, match="must have every shard of an input once and in order"):
            merged(tmp_path, "out", doubled)
    merged(tmp_path, "XZ", ["X", "z"])
    for doubled in (["XY", "X"], ["Y", "XY"], ["XY", "XZ"]):
        with pytest.raises(ValueError, match=r"must hold no text twice, but .* have a part in common"):
            merged(tmp_path, "out", doubled)
    assert not list(tmp_path.glob("out*"))


def test_different_corpora_are_joined_in_order(tmp_path):
    from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
    from tests.data.preprocessing.corpora import ARTICLES, sentences_of

    for name, texts in (("a", ARTICLES[:1]), ("b", ARTICLES[1:])):
        prepare(tmp_path, write_jsonl(tmp_path / f"{name}.jsonl", texts), output_prefix=str(tmp_path / name))
    merge_shards([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), show=False)
    assert sentences_of(tmp_path / "out", load_tokenizer(tmp_path / "out-tokenizer")) == EXPECTED
    with pytest.raises(ValueError, match=r"must name a new corpus, but .*out\.json exists"):
        merge_shards([str(tmp_path / "a")], str(tmp_path / "out"), show=False)


def test_other_tokenizers_and_damaged_parts_are_refused(shards, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["The cat."])
    prepare(tmp_path, source, output_prefix=str(tmp_path / "cased"), case="keep")
    with pytest.raises(ValueError, match="must be corpora of one tokenizer"):
        merge_shards([str(shards / "all"), str(tmp_path / "cased")], str(tmp_path / "out"), show=False)
    data = bytearray((tmp_path / "cased.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "cased.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"cased\.bin` must have SHA-256"):
        merge_shards([str(tmp_path / "cased")], str(tmp_path / "out"), show=False)


def test_names_of_parts(tmp_path):
    with pytest.raises(ValueError, match="matches nothing"):
        find_parts([str(tmp_path / "*.json")])
    for suffix in ("bin", "idx", "json"):
        (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(ValueError, match="names one twice"):
        find_parts([str(tmp_path / "a"), str(tmp_path / "a.json")])
