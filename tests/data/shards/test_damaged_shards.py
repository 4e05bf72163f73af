"""Damaged corpora: any change of .bin, .idx or tokenizer is found by --verify, none crashes or hangs, with or without.

Each damage is random (seeded): bytes changed, cut off, added, exchanged, fields of the header and the tables set to
extremes, values of the manifest replaced. The corpus is opened and read in a process of its own, so that a crash is
seen as one.
"""

import json
import multiprocessing
import random
import shutil

import pytest

from megatron_alum.data.preprocessing.merge import merge_shards
from megatron_alum.data.shards.corpus import Corpus
from megatron_alum.data.shards.files import open_shards, require_whole_manifest, shard_paths
from megatron_alum.data.shards.statistics import describe, document_sentences
from megatron_alum.data.tokenizers.tokenizer import load_tokenizer
from tests.data.damage import damaged_bytes, damaged_manifest, damaged_table
from tests.data.preprocessing.corpora import ARTICLES, prepare, write_jsonl

ROUNDS, MERGE_EVERY = 60, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    prepare(folder, write_jsonl(folder / "in.jsonl", [*ARTICLES, "", *ARTICLES]))
    return folder


def read_all(prefix, verify, tokenizer):
    """All that the tools do with a corpus before a sample is drawn."""
    shards = open_shards(prefix, verify=verify)
    require_whole_manifest(shards.manifest, shard_paths(prefix)["json"])
    tokenizer = tokenizer or load_tokenizer(shards.tokenizer_dir)
    Corpus.open(str(prefix), shards.index).check_sentences()
    describe(shards, tokenizer)
    for number in range(shards.num_documents):
        list(document_sentences(shards, tokenizer, number))
    for verb in ("skipped", "repaired"):
        for entry in shards.manifest[verb].values():
            f"{entry['count']:,} {', '.join(entry['examples'])}"


def merge_all(folder, verify):
    """tools/merge_shards.py with one corpus; whatever comes of it, nothing but a whole corpus may be left."""
    joined = folder / "joined"
    try:
        merge_shards([str(folder / "out")], str(joined / "out"), verify=verify, show=False)
        open_shards(joined / "out")
    except ValueError:
        assert not joined.exists() or not list(joined.iterdir()), "left behind"
        raise
    finally:
        shutil.rmtree(joined, ignore_errors=True)


def try_damages(folder, name, damage, verify, outcomes):
    """Child process: the outcome of each round, put before and after it so that a crash shows its round."""
    original = (folder / name).read_bytes()
    tokenizer = None if "tokenizer" in name else load_tokenizer(folder / "out-tokenizer")
    for number in range(ROUNDS):
        outcomes.put((number, "began"))
        (folder / name).write_bytes(damage(random.Random(number), original))
        tasks = [lambda: read_all(folder / "out", verify, tokenizer), lambda: merge_all(folder, verify)]
        for task in tasks if number % MERGE_EVERY == 0 else tasks[:1]:
            try:
                task()
                outcomes.put((number, "accepted"))
            except ValueError as error:
                outcomes.put((number, "refused" if str(error) else "no sentence"))
            except BaseException as error:
                outcomes.put((number, f"{type(error).__name__}: {error}"))
    outcomes.put((ROUNDS, "done"))


def outcomes_of(corpus, tmp_path, name, damage, verify):
    folder = tmp_path / "copy"
    shutil.copytree(corpus, folder)
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    child = context.Process(target=try_damages, args=(folder, name, damage, verify, outcomes))
    child.start()
    found = []
    while not found or found[-1] != (ROUNDS, "done"):
        found.append(outcomes.get(timeout=120))  # queue.Empty: the child hangs or died
    child.join(timeout=60)
    assert child.exitcode == 0
    return [outcome for _number, outcome in found if outcome not in ("began", "done")]


@pytest.mark.parametrize("verify", [True, False], ids=["verify", "open"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("out.bin", damaged_bytes),
        ("out.idx", damaged_bytes),
        ("out.idx", damaged_table),
        ("out-tokenizer/tokenizer.json", damaged_bytes),
        ("out.json", damaged_bytes),
        ("out.json", damaged_manifest),
    ],
)
def test_no_damage_crashes_and_none_is_accepted_that_can_be_seen(corpus, tmp_path, name, damage, verify):
    outcomes = outcomes_of(corpus, tmp_path, name, damage, verify)
    assert len(outcomes) == ROUNDS + ROUNDS // MERGE_EVERY
    assert set(outcomes) <= {"refused", "accepted"}
    if verify and name != "out.json":
        assert set(outcomes) == {"refused"}
    assert "refused" in outcomes or name == "out.bin"  # without --verify nothing reads all of .bin


def test_documents_out_of_order_are_refused(corpus, tmp_path):
    """The first and the last bound alone were looked at: one between them could point anywhere."""
    shutil.copytree(corpus, tmp_path / "copy")
    path = tmp_path / "copy" / "out.idx"
    data = bytearray(path.read_bytes())
    data[-16:-8] = (2**40).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"out\.idx` must give its documents in ascending order, but document \d+ ends"
    ):
        open_shards(tmp_path / "copy" / "out")


def test_verify_needs_the_checksums(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    path = tmp_path / "copy" / "out.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][".bin"]
    path.write_text(json.dumps(manifest))
    (tmp_path / "copy" / "out.bin").write_bytes(bytes(len((corpus / "out.bin").read_bytes())))
    with pytest.raises(ValueError, match="must be a whole manifest, but its files"):
        open_shards(tmp_path / "copy" / "out", verify=True)
