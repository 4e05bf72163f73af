"""A finished folder without its training data: its record, evaluation, prediction, attack; divergence."""

import json
import random

import pytest
import torch

from megatron_alum.finetune.benchmarks.decoding import check_finite
from megatron_alum.finetune.benchmarks.metrics import entity_metrics
from megatron_alum.finetune.runs import grid
from megatron_alum.finetune.runs.stored import FILE_NAME, stored_task
from tests.finetune.runs.test_tools import WORDS, encoder, rows_of, run_tool  # noqa: F401 (encoder is a fixture)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Texts of 20 words whose verdict is that of the first: cut differently, they are judged differently."""
    folder, rng = tmp_path_factory.mktemp("own"), random.Random(0)
    for split, count in (("train", 96), ("dev", 32)):
        rows = []
        for _ in range(count):
            index = rng.randrange(8)
            rest = [rng.choice(WORDS) for _ in range(19)]
            rows.append({"body": " ".join([WORDS[index], *rest]), "verdict": "up" if index < 4 else "down"})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def trained(encoder, own, tmp_path_factory):  # noqa: F811
    """Output folder of a run on inputs of 5 tokens; labels found in the file."""
    output = tmp_path_factory.mktemp("out") / "own"
    files = ("--train-file", own / "train.json", "--validation-file", own / "dev.json")
    columns = ("--text-column", "body", "--label-column", "verdict")
    more = ("--max-seq-length", 5, "--num-train-epochs", 3, "--learning-rate", 5e-3)
    command = ("--model", encoder, "--task", "custom", "--output", output, *files, *columns, *more)
    assert run_tool("finetune", *command) == 0
    return output


def value_of(folder):
    return rows_of(folder / "results.jsonl")[0]["value"]


def test_a_folder_records_what_it_was_trained_for(trained):
    said = stored_task(trained / "model")
    assert said["task"] == "custom" and said["labels"] == ["down", "up"] and said["max_seq_length"] == 5
    assert (said["text_column"], said["label_column"], said["kind"]) == ("body", "verdict", "classification")


def test_evaluation_gives_the_training_s_own_result(trained, own, tmp_path):
    model = ("--model", trained / "model", "--validation-file", own / "dev.json", "--output", tmp_path / "out")
    assert run_tool("finetune", "--evaluate-only", *model) == 0
    assert value_of(tmp_path / "out") == value_of(trained)
    run = next(trained.glob("runs/*"))
    assert (tmp_path / "out" / "dev.tsv").read_text() == (run / "dev.tsv").read_text()


def test_prediction_needs_no_labels(trained, own, tmp_path):
    rows = json.loads((own / "dev.json").read_text())
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"body": row["body"]}) + "\n" for row in rows))
    model = ("--model", trained / "model", "--predict-file", tmp_path / "new.jsonl", "--output", tmp_path / "out")
    assert run_tool("finetune", *model) == 0
    run = next(trained.glob("runs/*"))
    assert (tmp_path / "out" / "predict.tsv").read_text() == (run / "dev.tsv").read_text()
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_rows_with_and_without_labels_are_predicted_alike(trained, own, tmp_path, capsys):
    rows = [
        {"body": row["body"], "verdict": None if i % 3 else row["verdict"].upper()}
        for i, row in enumerate(json.loads((own / "dev.json").read_text()))
    ]
    (tmp_path / "new.json").write_text(json.dumps(rows))
    model = ("--model", trained / "model", "--predict-file", tmp_path / "new.json", "--output", tmp_path / "out")
    assert run_tool("finetune", *model) == 0
    run = next(trained.glob("runs/*"))
    assert (tmp_path / "out" / "predict.tsv").read_text() == (run / "dev.tsv").read_text()
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert "new.json: 11 of 32 rows have a label: predicted, not scored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "more"), [("finetune", ("--evaluate-only",)), ("finetune", ("--task", "sst2")), ("attack", ())]
)
def test_the_folder_of_a_grid_names_its_model(trained, tmp_path, capsys, tool, more):
    arguments = ("--model", trained, "--output", tmp_path / "out", *more)
    assert run_tool(tool, *arguments, expect_error=True) == 2
    assert f"holds the runs of a fine-tuning. Give {trained / 'model'}." in capsys.readouterr().err


def test_attack_cuts_where_training_did(trained, own, tmp_path):
    more = ("--validation-file", own / "dev.json", "--radii", 0, "--output", tmp_path)
    assert run_tool("attack", "--model", trained / "model", *more) == 0
    assert rows_of(tmp_path / "attack.jsonl")[0]["accuracy"] == value_of(trained)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--evaluate-only",), "--data-dir must hold files of custom to evaluate on"),
        (("--predict-file", "nope.csv"), "must be a file, but"),
        (("--predict-file", "nope.csv", "--evaluate-only"), "--evaluate-only must be left out with --predict-file"),
        (("--evaluate-only", "--train-file", "x.csv"), "--train-file must be left out"),
        (("--evaluate-only", "--task", "mnli", "--data-dir", "."), "--model must have the 3 classes of mnli"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(trained, tmp_path, capsys, more, message):
    arguments = ("--model", trained / "model", "--output", tmp_path / "out", *more)
    assert run_tool("finetune", *arguments, expect_error=True) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_damaged_record_is_named(tmp_path):
    assert stored_task(tmp_path) == {}
    for text in ("{", "{}", '{"task": "sst2", "max_seq_length": "long"}', "[]"):
        (tmp_path / FILE_NAME).write_text(text)
        with pytest.raises(ValueError, match=f"{FILE_NAME} must be as megatron-alum finetune writes it"):
            stored_task(tmp_path)


def test_a_run_that_diverges_ends_in_one_sentence_and_keeps_its_last_checkpoint(
    encoder,  # noqa: F811
    own,
    tmp_path,
    capsys,
    monkeypatch,
):
    from transformers import TrainerCallback

    class Diverge(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 5:
                with torch.no_grad():
                    next(model.parameters()).fill_(float("nan"))

    original = grid.build_trainer

    def diverging(*arguments):
        trainer = original(*arguments)
        trainer.add_callback(Diverge())
        return trainer

    monkeypatch.setattr(grid, "build_trainer", diverging)
    files = ("--train-file", own / "train.json", "--validation-file", own / "dev.json")
    columns = ("--text-column", "body", "--label-column", "verdict", "--num-train-epochs", 3)
    arguments = ("--model", encoder, "--task", "custom", "--output", tmp_path / "out", *files, *columns)
    assert run_tool("finetune", *arguments, expect_error=True) == 2
    assert "it has diverged. Use a smaller --learning-rate" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "out" / "model").exists() and not (tmp_path / "out" / "results.jsonl").exists()


def test_outputs_that_are_not_numbers_are_found_in_tuples_too():
    good, bad = torch.zeros(2, 3).numpy(), torch.tensor([[0.0, float("nan")]]).numpy()
    check_finite((good, good), "dev")
    for outputs in (bad, (good, bad)):
        with pytest.raises(ValueError, match="outputs on dev must be numbers, but some are NaN"):
            check_finite(outputs, "dev")


@pytest.mark.parametrize("gold", [[["O", "O"]], [["B-X", "O"]], [["S-X", "O"]]])
def test_the_scheme_of_tags_is_the_tasks_whatever_a_split_holds(gold):
    names = ("O", "B-X", "I-X", "E-X", "S-X")
    found = entity_metrics(gold, [["S-X", "O"]], names)
    assert found["entity_f1_strict"] == float(gold[0][0] == "S-X")
