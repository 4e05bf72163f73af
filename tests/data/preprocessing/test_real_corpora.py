"""The shared corpora through the whole tool: counts, what was skipped, and shards that stock megatron-core trains
on."""

import pytest
import torch

from benchmarks.sampling import megatron_core_dataset
from megatron_alum.data.shards.files import open_shards
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
from tests.data.preprocessing.corpora import prepare

# documents and sentences; a change of a splitting or cleaning rule moves the second number and must be looked at
DUMP_COUNTS = (103, 25_000, 28_000)


@pytest.fixture(scope="module")
def wiki(request, tmp_path_factory):
    """Four files of extracted Wikipedia with the uncased BERT vocabulary."""
    shared = request.getfixturevalue("shared_data")
    folder = tmp_path_factory.mktemp("wiki")
    vocab = str(shared / "vocab" / "bert-base-uncased-vocab.txt")
    prepare(folder, shared / "wiki" / "extracted" / "AA" / "wiki_0[1-4].bz2", vocab_file=vocab)
    return folder / "out"


@pytest.mark.requires_shared_data
def test_the_dumps_go_through_completely(tmp_path, shared_data):
    vocab = str(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    manifest = prepare(tmp_path, shared_data / "wiki" / "dump", vocab_file=vocab)
    assert manifest["num_documents"] == DUMP_COUNTS[0]
    assert DUMP_COUNTS[1] < manifest["num_sentences"] < DUMP_COUNTS[2]
    assert {reason: entry["count"] for reason, entry in manifest["skipped"].items()} == {
        "redirect": 99,
        "disambiguation page": 8,
        "not in the article namespace": 1,
    }
    assert manifest["repaired"] == {}


@pytest.mark.requires_shared_data
def test_real_shards_open_and_verify(wiki):
    shards = open_shards(wiki, verify=True)
    tokenizer = load_tokenizer(shards.tokenizer_dir)
    text = tokenizer.decode(shards.indexed[0].tolist())
    assert text == "chen zhili" and shards.num_documents > 1000
    assert max(int(shards.indexed[i].max()) for i in range(200)) < len(tokenizer)


@pytest.mark.requires_shared_data
def test_stock_megatron_data_set_accepts_the_shards(wiki, tmp_path):
    """megatron-core's own BERT data set, built over our files, gives whole samples of our tokens."""
    tokenizer = load_tokenizer(f"{wiki}-tokenizer")
    was_initialized = torch.distributed.is_initialized()
    try:
        data = megatron_core_dataset(str(wiki), 128, str(tmp_path))
    finally:
        if not was_initialized:
            torch.distributed.destroy_process_group()
    for number in (0, 3, 500):
        sample = data[number]
        assert sample["text"].shape == (128,) and sample["text"][0] == tokenizer.cls_token_id
        assert (sample["text"] == tokenizer.sep_token_id).sum() == 2
        assert 1 <= (sample["labels"] >= 0).sum() <= 26 and sample["labels"].max() < len(tokenizer)


@pytest.mark.slow
@pytest.mark.requires_shared_data
@pytest.mark.parametrize("folder", ["AA", "AB", "AC"])
def test_a_hundred_files_go_through_completely(tmp_path, shared_data, folder):
    vocab = str(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    manifest = prepare(tmp_path, shared_data / "wiki" / "extracted" / folder, vocab_file=vocab, workers=2)
    print(folder, manifest["num_documents"], manifest["num_sentences"], manifest["skipped"], manifest["repaired"])
    assert set(manifest["skipped"]) <= {"no text"} and manifest["num_documents"] > 25_000
    assert open_shards(tmp_path / "out", verify=True).num_documents == manifest["num_documents"]
