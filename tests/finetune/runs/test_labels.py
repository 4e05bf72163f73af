"""Heads that people bring: other kinds, other numbers of classes, the task's classes in another order or spelling."""

import dataclasses
import itertools

import pytest
import torch

from megatron_alum.config.finetune import CustomTaskConfig
from megatron_alum.finetune.benchmarks.tasks import TASKS
from megatron_alum.finetune.runs.labels import order_of, reorder_classes
from megatron_alum.finetune.runs.models import build_model, head_note, load_finetuned
from megatron_alum.finetune.runs.stored import task_of
from tests.finetune.methods.test_embeddings import encoder, padded
from tests.finetune.toy import batch, tiny_model

NLI = ("entailment", "neutral", "contradiction")
SPELLINGS = {
    "upper": str.upper,
    "title": str.title,
    "blanks": lambda name: f" {name.replace('_', ' ')} ",
    "dashes": lambda name: name.replace("_", "-"),
}


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("task", ["mnli", "rte", "sst2", "scitail"])
def test_names_are_found_in_every_order_and_spelling(task, spell):
    wanted = TASKS[task].labels
    for found in itertools.permutations(wanted):
        order = order_of([SPELLINGS[spell](name) for name in found], wanted, TASKS[task].synonyms)
        assert [found[index] for index in order] == list(wanted)


@pytest.mark.parametrize(
    ("found", "task", "order"),
    [
        (("LABEL_0", "LABEL_1"), "rte", [0, 1]),
        (("0", "1", "2"), "mnli", [0, 1, 2]),
        (("positive", "negative"), "sst2", [1, 0]),
        (("1", "0"), "sst2", [1, 0]),
        (("LABEL_1", "LABEL_0"), "rte", None),
        (("good", "bad"), "sst2", None),
        (NLI, "rte", None),
        (("x", "x"), "rte", None),
    ],
)
def test_names_that_say_something_else(found, task, order):
    assert order_of(found, TASKS[task].labels, TASKS[task].synonyms) == order


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model.eval()


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DebertaV2", "Electra", "XLNet", "DistilBert"])
def test_classes_follow_their_names_in_every_architecture(name):
    changes = {"XLNet": {"d_model": 16, "n_head": 2, "n_layer": 1, "d_inner": 32}}.get(name, {})
    model = named(encoder(name, **changes, num_labels=3), [NLI[2], NLI[0], NLI[1]])
    inputs = padded(model)
    with torch.no_grad():
        before = model(**inputs).logits
        reorder_classes(model, [1, 2, 0], NLI)
        after = model(**inputs).logits
    torch.testing.assert_close(after, before[:, [1, 2, 0]])
    assert [model.config.id2label[index] for index in range(3)] == list(NLI)


@pytest.mark.parametrize("load", [build_model, load_finetuned])
def test_a_folder_of_another_order_keeps_what_its_classes_mean(tmp_path, load):
    names = ("CONTRADICTION", "ENTAILMENT", "NEUTRAL")
    model = named(tiny_model("classification"), names)
    model.save_pretrained(tmp_path)
    inputs = {name: value for name, value in batch("classification").items() if name != "labels"}
    with torch.no_grad():
        expected = model(**inputs).logits
        found = load(str(tmp_path), TASKS["mnli"]).eval()(**inputs).logits
    torch.testing.assert_close(found, expected[:, [1, 2, 0]])
    assert "put in the order" in head_note(str(tmp_path), TASKS["mnli"])


@pytest.mark.parametrize(
    ("kind", "changes", "names", "task"),
    [
        ("classification", {"num_labels": 3}, NLI, "rte"),
        ("classification", {"num_labels": 2}, ("good", "bad"), "rte"),
        ("classification", {"num_labels": 3}, NLI, "stsb"),
        ("regression", {}, ("LABEL_0",), "mnli"),
        ("tags", {"num_labels": 3}, ("O", "B-X", "I-X"), "mnli"),
        ("classification", {"num_labels": 3}, NLI, "squad-v1.1"),
        ("choice", {}, ("LABEL_0",), "stsb"),
        ("spans", {}, ("LABEL_0", "LABEL_1"), "swag"),
        ("tags", {"num_labels": 3}, ("O", "B-X", "I-X"), "bc2gm"),
    ],
)
def test_any_other_head_is_replaced_by_a_fresh_one_and_one_line_says_so(tmp_path, kind, changes, names, task):
    before = named(tiny_model(kind, **changes), names)
    before.save_pretrained(tmp_path)
    row, tags = TASKS[task], ("O", "B-GENE", "I-GENE", "E-GENE")
    after = build_model(str(tmp_path), row, tags)
    assert "fresh head" in head_note(str(tmp_path), row, tags)
    old, new = before.state_dict(), after.state_dict()
    for name, value in new.items():
        if "embeddings" in name or "encoder" in name:
            assert torch.equal(value, old[name]), name
    heads = [name for name in new if name.startswith(("classifier", "qa_outputs")) and name.endswith("weight")]
    assert heads and not any(name in old and torch.equal(new[name], old[name]) for name in heads)
    count = {"regression": 1, "spans": 2, "choice": 1, "tags": 4}.get(row.kind, len(row.labels))
    assert all(len(new[name]) == count for name in heads)
    with torch.no_grad():
        if row.kind != "choice":
            after(**{name: value for name, value in batch(row.kind).items() if name in ("input_ids", "attention_mask")})


def test_a_head_with_the_tasks_own_classes_stays(tmp_path):
    before = named(tiny_model("classification"), NLI)
    before.save_pretrained(tmp_path)
    assert head_note(str(tmp_path), TASKS["mnli"]) is None
    after = build_model(str(tmp_path), dataclasses.replace(TASKS["mnli"], dropout=0.1))
    assert torch.equal(after.classifier.weight, before.classifier.weight)


@pytest.mark.parametrize(
    ("kind", "changes", "names", "expected"),
    [
        ("classification", {"num_labels": 2}, ("up", "down"), ("classification", ("up", "down"))),
        ("classification", {"num_labels": 2}, ("LABEL_0", "LABEL_1"), ("classification", ("0", "1"))),
        ("regression", {}, ("LABEL_0",), ("regression", ())),
        ("spans", {}, ("LABEL_0", "LABEL_1"), ("spans", ())),
        ("tags", {"num_labels": 2}, ("O", "B-X"), ("tags", ())),
        ("choice", {}, ("LABEL_0",), ("choice", ())),
    ],
)
def test_a_folder_from_elsewhere_names_a_task_of_ones_own(tmp_path, kind, changes, names, expected):
    named(tiny_model(kind, **changes), names).save_pretrained(tmp_path)
    task = task_of(str(tmp_path), "custom", CustomTaskConfig(validation_file="x.csv"))
    assert (task.kind, task.labels) == expected


def test_classes_that_cannot_be_matched_are_refused_where_nothing_is_trained(tmp_path):
    named(tiny_model("classification", num_labels=2), ("good", "bad")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have the classes not_entailment, entailment of rte, but .* good, bad"):
        load_finetuned(str(tmp_path), TASKS["rte"])
