"""Shards and fine-tuning results that commit 9131dd6 wrote are read and continued.

Its checkpoints: tests/training/test_resume_options.py.

The files and the commands that made them are in tests/golden/of_9131dd6; their texts are read here without the package.
"""

import json
import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from megatron_alum.data.shards.files import open_shards
from tests.golden.of_9131dd6.make import VOCABULARY, save_encoder
from tests.helpers.warm import run_script

OLD = Path(__file__).parent / "golden" / "of_9131dd6"
DOCUMENTS = [json.loads(line)["text"] for line in (OLD / "in.jsonl").read_text().splitlines()]


@pytest.fixture
def old(tmp_path):
    """A copy of the folder, the encoder beside it."""
    shutil.copytree(OLD, tmp_path / "old")
    save_encoder(tmp_path / "old" / "encoder")
    return tmp_path / "old"


def run(folder, tool, *words):
    """What a tool prints, run in `folder`."""
    done = run_script(f"tools/{tool}.py", *words, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected_ids(documents):
    words = [re.findall(r"\w+|[.,]", text.lower()) for text in documents]
    return [[VOCABULARY.index(word) for word in document] for document in words]


def ids_of(prefix):
    shards = open_shards(str(prefix))
    bounds = shards.index.documents
    sentences = [shards.indexed[i].tolist() for i in range(shards.index.num_sentences)]
    return [list(chain(*sentences[bounds[i] : bounds[i + 1]])) for i in range(shards.num_documents)]


def test_shards_hold_the_text_they_were_made_of(old):
    assert ids_of(old / "corpus") == expected_ids(DOCUMENTS)
    assert run(old, "inspect_shards", "corpus", "--verify").startswith("checksums of 3 files: correct")
    assert run(old, "inspect_shards", "corpus", "--sample", "3", "--seq-length", "32").count("{[MASK] = ") > 0


def test_old_shards_are_not_merged(old):
    """They have no account of what was read, and that version could lose the end of a file."""
    (old / "more.jsonl").write_text(json.dumps({"text": "A new dog sits."}) + "\n")
    run(old, "preprocess_data", "--input", "more.jsonl", "--output-prefix", "more", "--tokenizer", "corpus-tokenizer")
    done = run_script("tools/merge_shards.py", "--input", "corpus", "more", "--output-prefix", "both", folder=old)
    assert done.returncode == 2 and "corpus has none: an earlier release made it" in done.stderr
    assert not list(old.glob("both*"))


FINETUNE = (
    "--model encoder --task sst2 --data-dir glue --output runs-alum --num-train-epochs 1 --learning-rate 1e-3 "
    "--per-device-train-batch-size 4 --method alum --max-seq-length 16 --save-model false"
).split()


def test_results_are_continued_and_reported(old):
    """Two seeds are done: they stay as they are and a third is added, although options are younger than the folder."""
    before = (old / "runs-alum" / "results.jsonl").read_text()
    assert run(old, "finetune", *FINETUNE, "--seeds", 1, 2, 3).count("done before, not repeated") == 2
    after = (old / "runs-alum" / "results.jsonl").read_text()
    assert after.startswith(before) and [json.loads(row)["seed"] for row in after.splitlines()] == [1, 2, 3]
    run(old, "make_report", "--results", "ours=runs-alum/results.jsonl", "--output", "report")
    values = [json.loads(row)["value"] for row in after.splitlines()]
    assert f"{100 * np.mean(values):.1f}" in (old / "report" / "tables.md").read_text()


def test_another_setting_is_still_refused(old):
    """One that the folder's options lack, given another value than its default."""
    layer = ("--alum-perturb", "layer", "--alum-perturb-layer", 1)
    done = run_script("tools/finetune.py", *FINETUNE, "--seeds", 1, *layer, folder=old)
    assert done.returncode == 2 and "was made with --alum-perturb" in done.stderr
