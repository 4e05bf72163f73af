"""The index on disk: built once, whole or not at all, and a function of what decides the rows and nothing else."""

import logging
import multiprocessing
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_alum.data.sampling.index import epoch_rows
from megatron_alum.data.sampling.pairs import ROW, WalkSettings, walk_epoch
from megatron_alum.data.shards.corpus import Corpus
from megatron_alum.data.shards.files import read_index
from tests.data.damage import damaged_bytes
from tests.data.sampling.builders import open_train, random_documents, toy_bert_tokenizer, toy_corpus, write_shards

WHOLE = (1.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return toy_corpus(tmp_path_factory.mktemp("index") / "corpus", 60)


@pytest.fixture
def corpus(prefix):
    return Corpus.open(prefix, read_index(Path(f"{prefix}.idx")))


def walk(**changes) -> WalkSettings:
    return WalkSettings(**{"objective": "nsp", "max_tokens": 125, "short_seq_prob": 0.1, "seed": 1, **changes})


def rows_of(corpus, folder, settings=None, build=walk_epoch):
    return epoch_rows(corpus, corpus.split(WHOLE, "train"), settings or walk(), folder=folder, build=build)


def never(sentences, settings):
    raise AssertionError("the rows must come from the cache")


def test_second_opening_builds_nothing(corpus, tmp_path):
    first = rows_of(corpus, tmp_path)
    again = rows_of(corpus, tmp_path, build=never)
    assert first.dtype == again.dtype == ROW and isinstance(again, np.memmap)
    assert first.tobytes() == again.tobytes() == walk_epoch(corpus.split(WHOLE, "train"), walk()).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "sop"},
        {"max_tokens": 124},
        {"short_seq_prob": 0.2},
        {"seed": 2},
        {"epoch": 1},
        {"dataset": 1},
    ],
)
def test_what_decides_the_rows_decides_the_file(corpus, tmp_path, change):
    first, other = rows_of(corpus, tmp_path), rows_of(corpus, tmp_path, walk(**change))
    assert first.tobytes() != other.tobytes()
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_full_sentences_are_the_same_rows_in_every_epoch(corpus, tmp_path):
    settings = walk(objective="none")
    rows_of(corpus, tmp_path, settings)
    rows_of(corpus, tmp_path, walk(objective="none", epoch=3, seed=9), build=never)


def test_mask_rate_and_masking_are_no_part_of_it(prefix, tmp_path):
    for options in ({}, {"mask_rate_end": 0.5}, {"masking": "whole_word"}, {"sampler": "python"}):
        open_train(prefix, data_cache_path=str(tmp_path), train_samples=100, **options).batch([0])
    open_train(prefix, data_cache_path=str(tmp_path), train_samples=77).batch([0])
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_default_folder_is_beside_the_shard(tmp_path):
    prefix = toy_corpus(tmp_path / "made" / "corpus", 5)
    open_train(prefix, train_samples=1).batch([0])
    assert [path.suffix for path in sorted((tmp_path / "made" / "index-cache").iterdir())] == [".json", ".lock", ".npy"]


def test_another_corpus_of_the_same_size_has_another_file(tmp_path):
    documents = random_documents(20)
    a = write_shards(tmp_path / "a" / "corpus", documents, toy_bert_tokenizer())
    longer, shorter = documents[3][0], next(s for d in documents[4:] for s in d if len(s) > 1)
    longer.append(shorter.pop())
    b = write_shards(tmp_path / "b" / "corpus", documents, toy_bert_tokenizer())
    for prefix in (a, b):
        open_train(prefix, data_cache_path=str(tmp_path / "cache"), train_samples=1).batch([0])
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_any_damage_is_seen_and_mended(corpus, tmp_path, caplog, suffix):
    """Of the rows every one; of what is written beside them, where they can no longer be relied on."""
    expected = np.array(rows_of(corpus, tmp_path))  # not the mapped file, which changes
    built = []

    def build(_sentences, _settings):
        built.append(1)
        return expected

    (path,) = tmp_path.glob(f"*{suffix}")
    whole = path.read_bytes()
    for number in range(60):
        caplog.clear()
        path.write_bytes(damaged_bytes(random.Random(number), whole))
        assert rows_of(corpus, tmp_path, build=build).tobytes() == expected.tobytes()
        assert caplog.text.count("is not what was written there") == len(built)
        if suffix == ".npy":
            assert len(built) == 1 and path.read_bytes() == whole
        built.clear()


def test_rows_without_their_checksum_are_built_again(corpus, tmp_path):
    """A process that died between the two files."""
    expected = rows_of(corpus, tmp_path).tobytes()
    next(tmp_path.glob("*.json")).unlink()
    assert rows_of(corpus, tmp_path).tobytes() == expected
    assert rows_of(corpus, tmp_path, build=never).tobytes() == expected


def test_a_folder_that_cannot_be_made_keeps_the_rows_in_memory(corpus, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        rows = rows_of(corpus, tmp_path / "file")
    assert rows.tobytes() == walk_epoch(corpus.split(WHOLE, "train"), walk()).tobytes()
    assert "--data-cache-path" in caplog.text


def _build_with_a_full_disk(corpus, folder, connection):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is an OSError, like a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    connection.send(rows_of(corpus, folder).tobytes())


def test_a_full_disk_leaves_nothing_behind(corpus, tmp_path):
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe()
    process = forked.Process(target=_build_with_a_full_disk, args=(corpus, tmp_path, theirs))
    process.start()
    assert ours.recv() == walk_epoch(corpus.split(WHOLE, "train"), walk()).tobytes()
    process.join()
    assert process.exitcode == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def _build_and_count(corpus, folder, connection):
    built = []

    def counting(sentences, settings):
        built.append(1)
        return walk_epoch(sentences, settings)

    connection.send((rows_of(corpus, folder, build=counting).tobytes(), len(built)))


def test_of_many_ranks_one_builds(corpus, tmp_path):
    forked = multiprocessing.get_context("fork")
    pipes = [forked.Pipe() for _ in range(4)]
    processes = [forked.Process(target=_build_and_count, args=(corpus, tmp_path, theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()
    results = [ours.recv() for ours, _ in pipes]
    for process in processes:
        process.join()
    assert len({rows for rows, _ in results}) == 1
    assert sum(built for _, built in results) == 1


def test_sentence_table_is_checked_before_it_is_walked(tmp_path):
    prefix = toy_corpus(tmp_path / "corpus", 5)
    path = Path(f"{prefix}.idx")
    whole = bytearray(path.read_bytes())
    for value, words in ((0, "at least one token"), (1_000_000, "back to back")):
        whole[34 + 8 : 34 + 12] = value.to_bytes(4, "little")  # length of the third sentence
        path.write_bytes(whole)
        corpus = Corpus.open(prefix, read_index(path))
        with pytest.raises(ValueError, match=words):
            rows_of(corpus, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_the_next_epoch_is_built_ahead_where_the_run_needs_it(prefix, tmp_path):
    dataset = open_train(prefix, data_cache_path=str(tmp_path), train_samples=2000)
    dataset.batch([0])
    (shard,) = dataset.shards
    assert len(shard.epochs) == 1
    deadline = time.time() + 30
    while len(list(tmp_path.glob("*.json"))) < 2 and time.time() < deadline:  # written after the rows
        time.sleep(0.01)
    end = shard.epochs[0].end_sample
    dataset.batch([end])
    assert end < 2000 and len(shard.epochs) == 2
    again = open_train(prefix, data_cache_path=str(tmp_path / "other"), train_samples=1)
    again.batch([end])
    assert again.shards[0].epochs[1].rows.tobytes() == shard.epochs[1].rows.tobytes()
    enough = open_train(prefix, data_cache_path=str(tmp_path / "enough"), train_samples=end)
    enough.batch([0])
    assert len(list((tmp_path / "enough").glob("*.npy"))) == 1
