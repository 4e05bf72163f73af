"""tools/attack.py: what it refuses before it attacks, and attacks on files of the user's own."""

import functools
import json

import pytest
import torch
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from megatron_alum.finetune.benchmarks.tasks import TASKS
from megatron_alum.finetune.runs.models import check_finetuned, load_finetuned
from tests.finetune.runs.test_tools import WORDS, encoder, flags, rows_of, run_tool, sentiment  # noqa: F401  fixtures


@pytest.fixture(scope="module")
def finished(encoder, sentiment, tmp_path_factory):  # noqa: F811
    """The model of a short run on the toy sentiment task."""
    output = tmp_path_factory.mktemp("attacked")
    run_tool("finetune", *flags(encoder, sentiment, output), "--seeds", 1)
    return output / "model"


def with_head(source, folder, head, **settings):
    """The encoder of `source` with a new head, saved as if it had been fine-tuned."""
    torch.manual_seed(0)
    head.from_pretrained(source, **settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def refusal(capsys, model, sentiment, output, *more, task="sst2"):  # noqa: F811
    command = ("--model", model, "--task", task, "--data-dir", sentiment, "--output", output, "--radii", 0, *more)
    assert run_tool("attack", *command, expect_error=True) == 2
    assert not (output / "attack.jsonl").exists()
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (AutoModelForTokenClassification, "BertForTokenClassification"),
        (AutoModelForMultipleChoice, "BertForMultipleChoice"),
        (None, "BertModel"),
    ],
)
def test_a_model_with_another_head_is_refused(encoder, sentiment, tmp_path, capsys, head, name):  # noqa: F811
    model = encoder if head is None else with_head(encoder, tmp_path / "model", head)
    error = refusal(capsys, model, sentiment, tmp_path / "out")
    assert f"--model must end in ForSequenceClassification for the task sst2, but {model} holds {name}" in error


def test_a_model_that_lacks_its_head_is_refused(encoder, sentiment, tmp_path, capsys):  # noqa: F811
    """config.json promises a classifier, the weights hold none."""
    model = with_head(encoder, tmp_path / "model", AutoModelForSequenceClassification)
    (model / "model.safetensors").write_bytes((encoder / "model.safetensors").read_bytes())
    error = refusal(capsys, model, sentiment, tmp_path / "out")
    assert "must hold the weights of encoder and head" in error and "classifier.weight" in error


def test_a_model_with_other_classes_is_refused_before_the_data_are_read(encoder, finished, tmp_path, capsys):  # noqa: F811
    error = refusal(capsys, finished, tmp_path, tmp_path / "out", task="mnli")
    assert f"--model must have the 3 classes of mnli, but {finished} has 2." in error
    names = dict(enumerate(("good", "bad", "ugly")))
    turned = with_head(encoder, tmp_path / "model", AutoModelForSequenceClassification, num_labels=3, id2label=names)
    error = refusal(capsys, turned, tmp_path, tmp_path / "out", task="mnli")
    assert "must have the classes entailment, neutral, contradiction of mnli" in error and "good, bad, ugly" in error


def test_a_trained_model_is_loaded_whole(finished):
    check_finetuned(str(finished), TASKS["sst2"])
    model = load_finetuned(str(finished), TASKS["sst2"])
    expected = AutoModelForSequenceClassification.from_pretrained(finished).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("split", "flag"), [("dev", "--validation-file"), ("test", "--test-file")])
def test_custom_files_give_the_tables_result(finished, sentiment, tmp_path, split, flag):  # noqa: F811
    """The sentiment task's own development set, in another layout."""
    lines = (sentiment / "SST-2" / "dev.tsv").read_text().splitlines()[1:]
    pairs = [line.split("\t") for line in lines]
    rows = [{"body": text, "verdict": ("down", "up")[int(label)]} for text, label in pairs]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--model", finished, "--radii", 0, 0.05, "--num-steps", 2)
    run_tool("attack", *common, "--task", "sst2", "--data-dir", sentiment, "--output", tmp_path / "table")
    custom = ("--task", "custom", flag, tmp_path / "own.jsonl", "--split", split, "--labels", "down", "up")
    columns = ("--text-column", "body", "--label-column", "verdict")
    run_tool("attack", *common, *custom, *columns, "--output", tmp_path / "custom")
    expected, found = (rows_of(tmp_path / name / "attack.jsonl") for name in ("table", "custom"))
    assert [row["accuracy"] for row in found] == [row["accuracy"] for row in expected]
    assert (found[0]["task"], found[0]["split"], found[0]["n"]) == ("custom", split, 48)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--labels", "0", "1"), "--validation-file must be given to attack --split dev of --task custom"),
        (
            ("--validation-file", "x.csv", "--split", "test", "--labels", "0", "1"),
            "--test-file must be given",
        ),
        (("--validation-file", "x.csv"), "x.csv does not exist"),  # the model names the classes
    ],
)
def test_custom_tasks_without_what_they_need_are_refused(finished, tmp_path, capsys, more, message):
    assert message in refusal(capsys, finished, tmp_path, tmp_path / "out", *more, task="custom")


def test_the_model_runs_where_the_fastest_device_is(finished, sentiment, tmp_path, monkeypatch):  # noqa: F811
    """On a GPU where there is one: the model that is attacked lies there."""
    from transformers import BertForSequenceClassification

    seen = set()
    original = BertForSequenceClassification.forward

    @functools.wraps(original)  # the signature is looked at
    def observed(self, *arguments, **options):
        seen.add(self.device.type)
        return original(self, *arguments, **options)

    monkeypatch.setattr(BertForSequenceClassification, "forward", observed)
    command = ("--model", finished, "--task", "sst2", "--data-dir", sentiment, "--output", tmp_path, "--radii", 0, 0.1)
    run_tool("attack", *command, "--num-steps", 2)
    assert seen == {"cuda" if torch.cuda.is_available() else "cpu"}
