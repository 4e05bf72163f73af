"""Every option that names a file or folder, given every wrong kind of path: one sentence that names the option and what
was found, status 2.

The options come from the configurations behind the commands: a new one is tested as soon as it is declared.
"""

import json
import re
import sys
import typing

import pytest

from megatron_alum.cli import main as console
from megatron_alum.cli.convert import FromHfConfig, ToHfConfig
from megatron_alum.cli.estimate import EstimateConfig
from megatron_alum.cli.inspect import InspectConfig
from megatron_alum.cli.merge import MergeConfig
from megatron_alum.cli.report import ReportConfig
from megatron_alum.config.fields import options_of
from megatron_alum.config.finetune import AttackConfig, FinetuneConfig
from megatron_alum.config.places import Place, places_of
from megatron_alum.config.run import RunConfig
from megatron_alum.data.preprocessing.settings import PreprocessSettings
from megatron_alum.data.preprocessing.vocabulary_settings import TrainTokenizerSettings

CONFIGURATIONS = {
    "preprocess": PreprocessSettings,
    "train-tokenizer": TrainTokenizerSettings,
    "inspect": InspectConfig,
    "merge": MergeConfig,
    "pretrain": RunConfig,
    "convert to-hf": ToHfConfig,
    "convert from-hf": FromHfConfig,
    "finetune": FinetuneConfig,
    "attack": AttackConfig,
    "report": ReportConfig,
    "estimate": EstimateConfig,
}
USUAL = {
    "preprocess": "--input {text} --output-prefix {new} --vocab-file {vocab} --workers 1",
    "train-tokenizer": "--input {text} --output {new} --vocab-size 100",
    "inspect": "--data-path {corpus}",
    "merge": "--input {corpus} --output-prefix {new}",
    "pretrain": "--data-path {corpus} --save {new} --model-size tiny --seq-length 32 --train-iters 2 "
    "--global-batch-size 2 --micro-batch-size 2 --eval-interval 0 --progress-bar false --split 1",
    "convert to-hf": "--load {run} --output {new}",
    "convert from-hf": "--model {model} --save {new}",
    "finetune": "--model {model} --output {new} --task custom --train-file {table} --validation-file {table} "
    "--max-steps 1 --max-seq-length 16 --per-device-train-batch-size 2",
    "attack": "--model {model} --output {new} --task custom --validation-file {table}",
    "report": "--output {new}",
}
ALONGSIDE = {
    ("preprocess", "--punkt-dir"): "--sentence-splitter punkt",
    ("preprocess", "--tokenizer"): "--vocab-file none",
    ("finetune", "--predict-file"): "--train-file none",
    ("finetune", "--data-dir"): "--task rte --train-file none --validation-file none",
    ("finetune", "--test-file"): "",
    ("attack", "--data-dir"): "--task rte --validation-file none",
    ("report", "--model-card"): "--results {results}",
    ("convert to-hf", "--tokenizer"): "",
    ("pretrain", "--init-from"): "",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory, prefix):
    """{name: path} of something right for every option."""
    from megatron_alum.convert import commands
    from tests.convert.models import save_hf_model, tokenizer_folder

    folder = tmp_path_factory.mktemp("good")
    (folder / "text.jsonl").write_text('{"text": "The cat sat. The dog ran."}\n')
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]))
    (folder / "table.csv").write_text("sentence,label\nw1 w2,good\nw3 w4,bad\n")
    row = {"task": "rte", "split": "dev", "metric": "accuracy", "seed": 1, "value": 0.5}
    (folder / "results.jsonl").write_text(json.dumps(row) + "\n")
    save_hf_model("bert", folder / "model")
    tokenizer_folder(folder / "model")
    commands.from_hf(str(folder / "model"), folder / "run")
    names = {"text": "text.jsonl", "vocab": "vocab.txt", "table": "table.csv", "results": "results.jsonl"}
    names |= {"model": "model", "run": "run", "new": "new"}
    return {"corpus": prefix, **{name: str(folder / path) for name, path in names.items()}}


def wrong_paths(place, folder):
    """{what is wrong: path}, made in `folder`, for an option that wants `place`."""
    (folder / "some.file").write_bytes(b"some text\n")
    (folder / "empty.file").write_bytes(b"")
    (folder / "binary.file").write_bytes(bytes(range(256)) * 8)
    (folder / "empty folder").mkdir()
    (folder / "other folder").mkdir()
    (folder / "other folder" / "notes.txt").write_text("some text\n")
    paths = {"below a file": folder / "some.file" / "x"}
    if not place.is_output:
        paths |= {"missing": folder / "missing", "empty file": folder / "empty.file"}
        paths |= {"binary file": folder / "binary.file", "empty folder": folder / "empty folder"}
        paths |= {"other folder": folder / "other folder"}
    if place.kind == "folder":
        paths["a file"] = folder / "some.file"
    return paths


CASES = [
    (command, option.flag, place, wrong)
    for command, configuration in CONFIGURATIONS.items()
    if command != "estimate"
    for option, place in places_of(configuration)
    for wrong in (
        ["below a file"]
        + (["missing", "empty file", "binary file", "empty folder", "other folder"] if not place.is_output else [])
        + (["a file"] if place.kind == "folder" else [])
    )
]


@pytest.mark.parametrize(("command", "flag", "place", "wrong"), CASES, ids=lambda v: str(v) if isinstance(v, str) else "")
def test_table(command, flag, place, wrong, good, tmp_path, monkeypatch, capsys):
    path = str(wrong_paths(place, tmp_path)[wrong])
    words = (USUAL[command] + " " + ALONGSIDE.get((command, flag), "")).format(**{**good, "new": str(tmp_path / "new")}).split()
    given, i = {}, 0
    while i < len(words):
        j = i + 1
        while j < len(words) and not words[j].startswith("--"):
            j += 1
        given[words[i]] = words[i + 1 : j]
        i = j
    given[flag] = [path]
    monkeypatch.chdir(tmp_path)
    argv = ["megatron-alum", *command.split(), *(w for f, v in given.items() for w in (f, *v))]
    monkeypatch.setattr(sys, "argv", argv)
    status = 0
    try:
        console.main()
    except SystemExit as error:
        status = error.code or 0
    except BaseException as error:
        status = repr(error)[:150]
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1] if err.strip() else ""
    with open("/tmp/places.txt", "a") as f:
        f.write(f"{command} {flag} | {wrong} | {status} | {last.replace(str(tmp_path), 'T')[:330]} | lines {err.count(chr(10))} out {out.count(chr(10))}\n")
