"""Every option that names a file or folder, given every wrong kind of path: one sentence that names the option and what
was found, status 2.

The options come from the configurations behind the commands: a new one is tested as soon as it is declared.
"""

import json
import re
import sys
import typing
from pathlib import Path

import pytest
import transformers

from megatron_alum.cli import main as console
from megatron_alum.cli.convert import FromHfConfig, ToHfConfig
from megatron_alum.cli.inspect import InspectConfig
from megatron_alum.cli.merge import MergeConfig
from megatron_alum.cli.report import ReportConfig
from megatron_alum.config.cli import parse_config
from megatron_alum.config.fields import options_of
from megatron_alum.config.finetune import AttackConfig, FinetuneConfig
from megatron_alum.config.places import Place, about, check_places, places_of
from megatron_alum.config.run import RunConfig
from megatron_alum.data.preprocessing.settings import PreprocessSettings
from megatron_alum.data.preprocessing.vocabulary_settings import TrainTokenizerSettings
from tests.convert.models import save_hf_model, tokenizer_folder

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
}
USUAL = {
    "preprocess": "--input {text} --output-prefix {new} --vocab-file {vocab} --workers 1",
    "train-tokenizer": "--input {text} --output {new} --vocab-size 100",
    "inspect": "--data-path {corpus}",
    "merge": "--input {corpus} --output-prefix {new}",
    "pretrain": "--data-path {corpus} --save {new} --model-size tiny --seq-length 32 --train-iters 2",
    "convert to-hf": "--load {run} --output {new}",
    "convert from-hf": "--model {model} --save {new}",
    "finetune": "--model {model} --output {new} --task custom --train-file {table} --validation-file {table}",
    "attack": "--model {classifier} --output {new} --validation-file {table} {own}",
    "report": "--output {new}",
}
"""arguments under which the option in question is read"""
INSTEAD = {
    ("preprocess", "--punkt-dir"): "--input {text} --output-prefix {new} --vocab-file {vocab} "
    "--sentence-splitter punkt",
    ("preprocess", "--merge-file"): "--input {text} --output-prefix {new} --vocab-file {bytes}",
    ("preprocess", "--tokenizer"): "--input {text} --output-prefix {new}",
    ("convert to-hf", "--tokenizer"): "--load {bare} --output {new}",
    ("finetune", "--predict-file"): "--model {classifier} --output {new} {own}",
    ("finetune", "--data-dir"): "--model {model} --output {new} --task rte",
    ("attack", "--data-dir"): "--model {classifier} --output {new} --task sst2",
    ("attack", "--test-file"): "--model {classifier} --output {new} --split test {own}",
    ("report", "--model-card"): "--output {new} --results {results}",
}
RIGHT = {
    ("preprocess", "--input", "other folder"),  # whatever text is in it
    ("train-tokenizer", "--input", "other folder"),
    ("pretrain", "--load", "empty folder"),  # a fresh start
}
"""what looks wrong and is not"""


@pytest.fixture(scope="module")
def good(tmp_path_factory, prefix):
    """{name: path} of something right for every option; {own}: a task of the user's own that suits {classifier}."""
    from megatron_alum.convert import commands

    folder = tmp_path_factory.mktemp("good")
    made = {name: folder / name for name in ("model", "classifier", "run", "bare")}
    save_hf_model("bert", made["model"])
    commands.from_hf(str(made["model"]), made["bare"])
    tokenizer_folder(made["model"])
    commands.from_hf(str(made["model"]), made["run"])
    config = transformers.BertConfig.from_pretrained(made["model"], id2label={0: "negative", 1: "positive"})
    transformers.BertForSequenceClassification(config).save_pretrained(made["classifier"])
    tokenizer_folder(made["classifier"])
    row = {"task": "rte", "split": "dev", "metric": "accuracy", "seed": 1, "value": 0.5}
    texts = {
        "text": '{"text": "The cat sat. The dog ran."}\n',
        "vocab": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\n",
        "bytes.json": json.dumps({word: i for i, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}),
        "table.csv": "sentence,label\nw1 w2,positive\nw3 w4,negative\n",
        "results": json.dumps(row) + "\n",
    }
    for name, text in texts.items():
        made[name.partition(".")[0]] = folder / name
        (folder / name).write_text(text)
    return {"corpus": prefix, "own": "--task custom --labels negative positive", **made}


def wrong_paths(place, folder):
    """{what is wrong: path}, made in `folder`, for an option that wants `place`."""
    (folder / "some.file").write_bytes(b"some text\n")
    found = {"below a file": folder / "some.file" / "x"}
    if place.kind == "folder":
        found["a file"] = folder / "some.file"
    if place.is_output:
        return found
    found |= {name: folder / name for name in ("missing", "empty.file", "binary.file", "empty folder", "other folder")}
    found["empty.file"].write_bytes(b"")
    found["binary.file"].write_bytes(bytes(range(256)) * 8)
    found["empty folder"].mkdir()
    found["other folder"].mkdir()
    (found["other folder"] / "notes.txt").write_text("some text\n")
    return found


def refusals(command, flag, place, good, folder, monkeypatch, capsys):
    """{what is wrong: (exit status, stderr)} of a command whose `flag` is given each wrong path in turn."""
    new = folder / "new"
    usual = INSTEAD.get((command, flag), USUAL[command]).format(**good, new=new)
    found = {}
    for wrong, path in wrong_paths(place, folder).items():
        if (command, flag, wrong) in RIGHT:
            continue
        given = re.sub(rf"{flag} \S+", "", usual).split()
        monkeypatch.setattr(sys, "argv", ["megatron-alum", *command.split(), *given, flag, str(path)])
        with pytest.raises(SystemExit) as stopped:
            console.main()
        printed, error = capsys.readouterr()
        found[wrong] = path, stopped.value.code, error
        assert printed.count("\n") <= 1, f"{wrong}: options are printed before the refusal"
        assert not new.exists() or not any(new.iterdir()), f"{wrong}: something is left behind"
    return found


CASES = [
    pytest.param(command, option.flag, place, id=f"{command} {option.flag}")
    for command, configuration in CONFIGURATIONS.items()
    for option, place in places_of(configuration)
]


@pytest.mark.parametrize(("command", "flag", "place"), CASES)
def test_each_wrong_path_is_one_sentence(command, flag, place, good, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for wrong, (path, status, error) in refusals(command, flag, place, good, tmp_path, monkeypatch, capsys).items():
        sentence = error.replace("\r", "\n").strip().splitlines()[-1]
        assert status == 2 and sentence.startswith("error: "), f"{wrong}: {error}"
        assert "Traceback" not in error and error.count("error: ") == 1, f"{wrong}: {error}"
        named = path.parent if wrong == "below a file" and place.is_output else path
        assert flag in sentence and str(named) in sentence, f"{wrong}: {sentence}"


def test_a_folder_of_shards_is_named_with_what_lies_in_it(prefix, monkeypatch, capsys):
    folder = str(Path(prefix).parent)
    for command in ("inspect", "pretrain --save x --model-size tiny --data-path", "merge --output-prefix x --input"):
        monkeypatch.setattr(sys, "argv", ["megatron-alum", *command.split(), folder])
        with pytest.raises(SystemExit):
            console.main()
        assert f"{folder} is a folder instead, which holds the prefixes {prefix}." in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["megatron-alum", *"convert to-hf --output x --load".split(), folder])
    with pytest.raises(SystemExit):
        console.main()
    assert "a folder of shards, which are text and no network. Give the folder of a run" in capsys.readouterr().err


def test_a_prefix_has_a_name_and_no_suffix(prefix):
    for suffix in (".bin", ".idx", ".json", "/", ""):
        found = [Place("prefix", is_output).refusal(prefix + suffix) for is_output in (False, True)]
        if suffix == ".json":  # part of a name as any other, until such a file is given for its shards
            assert found[0].endswith("is one of their files instead. Leave .json out") and found[1] is None
        elif suffix:
            said = f"which has a name and no suffix, but is {prefix}{suffix} instead"
            assert all(refusal.endswith(said) for refusal in found)
        else:
            assert found == [None, None]


@pytest.mark.parametrize("command", CONFIGURATIONS)
def test_a_recipe_that_is_none(command, tmp_path, monkeypatch, capsys):
    paths = wrong_paths(Place("file"), tmp_path)
    for wrong in ("missing", "empty folder", "binary.file"):
        monkeypatch.setattr(sys, "argv", ["megatron-alum", *command.split(), "--config", str(paths[wrong])])
        with pytest.raises(SystemExit) as stopped:
            console.main()
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and "--config" in error and str(paths[wrong]) in error, error


def test_weights_of_a_blend_are_no_paths(prefix):
    check_places(parse_config(RunConfig, f"--data-path 0.7 {prefix} 3e-1 {prefix} --save x --model-size tiny".split()))


PATH_WORDS = re.compile(r"\b(files?|folders?|paths?|prefix(es)?)\b")
NO_PATHS = {
    ("CustomTaskConfig", "labels"),
    ("FinetuneDataConfig", "task"),
    ("RunSettings", "scheduler"),
    ("TextSettings", "language"),
}
"""options whose help speaks of a file or folder and which name none"""


def test_every_option_that_names_a_path_says_so():
    """A new option with a path is found by its help."""
    forgotten = set()
    for configuration in CONFIGURATIONS.values():
        marked = {option.name for option, _ in places_of(configuration)}
        for option in options_of(configuration):
            is_text = str in (option.kind, *typing.get_args(option.kind)[:1])
            if is_text and option.name not in marked and PATH_WORDS.search(option.doc):
                forgotten.add((option.owner.__name__, option.path[-1]))
    assert forgotten - NO_PATHS == set()


def test_help_says_what_kind_of_path():
    nouns = {option.flag: option.metavar for option, _ in places_of(RunConfig)}
    assert nouns["--data-path"] == "PREFIX" and nouns["--save"] == "FOLDER" and nouns["--init-from"] == "PATH"


def test_about_names_an_option_once():
    for said, expected in (("x is wrong.", "--a: x is wrong."), ("--b must be y.", "--b must be y.")):
        with pytest.raises(ValueError) as caught, about("--a"):
            raise ValueError(said)
        assert str(caught.value) == expected
