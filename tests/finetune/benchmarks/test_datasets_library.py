"""Folders saved by the `datasets` library, written here as it writes them: its splits, its -1 for no label."""

import json

import pytest

from megatron_alum.finetune.benchmarks.loading import load_split
from megatron_alum.finetune.benchmarks.tasks import TASKS


def save_arrow(folder, columns, **features):
    """The layout of DatasetDict.save_to_disk: a folder a split with an Arrow stream, its state and its features."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    table = pa.table(columns)
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


NLI_NAMES = {"names": ["entailment", "neutral", "contradiction"], "_type": "ClassLabel"}


def test_folder_saved_by_the_datasets_library(tmp_path):
    names = {"names": ["negative", "positive"], "_type": "ClassLabel"}
    save_arrow(tmp_path / "validation", {"sentence": ["good", "bad"], "label": [1, 0]}, label=names)
    save_arrow(tmp_path / "test", {"sentence": ["good", "bad"], "label": [-1, -1]}, label=names)
    examples = load_split(TASKS["sst2"], tmp_path, "dev")
    assert [(example["first"], example["label"]) for example in examples] == [("good", 1), ("bad", 0)]
    assert [example["label"] for example in load_split(TASKS["sst2"], tmp_path, "test")] == [None, None]
    save_arrow(tmp_path / "train", {"sentence": ["good", "bad"], "label": [1, -1]}, label=names)
    with pytest.raises(ValueError, match=r"train:2: the label must be given in every row of train"):
        load_split(TASKS["sst2"], tmp_path, "train")


def test_pairs_without_agreement_are_dropped_in_both_spellings(tmp_path):
    """SNLI's "-" is -1 in the `datasets` library."""
    columns = {"premise": ["A", "B", "C"], "hypothesis": ["x", "y", "z"], "label": [0, -1, 2]}
    for name, split in (("train", "train"), ("validation", "dev"), ("test", "test")):
        save_arrow(tmp_path / name, columns, label=NLI_NAMES)
        examples = load_split(TASKS["snli"], tmp_path, split)
        assert [(example["first"], example["label"]) for example in examples] == [("A", 0), ("C", 2)]


def test_anli_of_the_datasets_library(tmp_path):
    for split in ("train", "dev", "test"):
        for number in (1, 2, 3):
            columns = {"uid": [f"{split}{number}"], "premise": ["A"], "hypothesis": ["B"], "label": [number - 1]}
            save_arrow(tmp_path / f"anli/{split}_r{number}", columns, label=NLI_NAMES)
        examples = load_split(TASKS["anli"], tmp_path, split)
        assert [(e["id"], e["label"]) for e in examples] == [(f"{split}{i}", i - 1) for i in (1, 2, 3)]
    assert load_split(TASKS["anli"], tmp_path, "dev_r2")[0]["id"] == "dev2"
    assert load_split(TASKS["anli"], tmp_path, "test_r3")[0]["id"] == "test3"


SQUAD_COLUMNS = {"id": ["1"], "context": ["Blue sky"], "question": ["?"]}


@pytest.mark.parametrize("folder", ["squad_adversarial/{}", "squad/{}", "{}/validation"])
def test_adversarial_squad_of_the_datasets_library(tmp_path, folder):
    """One configuration with two splits, or two configurations with one."""
    for name, split in (("AddSent", "add_sent"), ("AddOneSent", "add_one_sent")):
        answers = [{"text": ["sky"], "answer_start": [5]}]
        save_arrow(tmp_path / folder.format(name), {**SQUAD_COLUMNS, "id": [f"1-{name}"], "answers": answers})
        assert load_split(TASKS["adv-squad"], tmp_path, split)[0]["id"] == f"1-{name}"


def test_squad_answers_of_the_datasets_library(tmp_path):
    save_arrow(tmp_path / "train", {**SQUAD_COLUMNS, "answers": [{"text": ["Blue"], "answer_start": [0]}]})
    example = load_split(TASKS["squad-v1.1"], tmp_path, "train")[0]
    assert example["answers"] == [{"text": "Blue", "answer_start": 0}] and not example["is_impossible"]
    save_arrow(tmp_path / "validation", {**SQUAD_COLUMNS, "answers": [{"text": ["sky"], "answer_start": [4]}]})
    with pytest.raises(ValueError, match=r"validation: question 1: the answer must stand at .* 4 as 'sky', but ' sk'"):
        load_split(TASKS["squad-v1.1"], tmp_path, "dev")


def test_questions_without_answer_belong_to_version_2(tmp_path):
    none = [{"text": ["Blue"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    columns = {name: values * 2 for name, values in SQUAD_COLUMNS.items()}
    save_arrow(tmp_path / "train", {**columns, "id": ["1", "2"], "answers": none})
    assert [example["is_impossible"] for example in load_split(TASKS["squad-v2"], tmp_path, "train")] == [False, True]
    with pytest.raises(ValueError, match=r"question 2: a question must have an answer, but has none"):
        load_split(TASKS["squad-v1.1"], tmp_path, "train")


def test_scores_of_the_datasets_librarys_test_set_are_no_labels(tmp_path):
    columns = {"sentence1": ["A", "B"], "sentence2": ["C", "D"]}
    save_arrow(tmp_path / "test", {**columns, "label": [-1.0, -1.0]})
    save_arrow(tmp_path / "validation", {**columns, "label": [0.0, 4.5]})
    assert [example["label"] for example in load_split(TASKS["stsb"], tmp_path, "test")] == [None, None]
    assert [example["label"] for example in load_split(TASKS["stsb"], tmp_path, "dev")] == [0.0, 4.5]


def test_tags_that_are_none_are_refused(tmp_path):
    names = {"names": ["O", "B-Disease", "I-Disease"], "_type": "ClassLabel"}
    feature = {"feature": names, "_type": "Sequence"}
    save_arrow(tmp_path / "train", {"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, ner_tags=feature)
    assert load_split(TASKS["ncbi-disease"], tmp_path, "train")[0]["tags"] == ["O", "B-Disease"]
    save_arrow(tmp_path / "validation", {"tokens": [["a", "b"]], "ner_tags": [[0, -1]]}, ner_tags=feature)
    with pytest.raises(
        ValueError, match=r"validation:1: a tag must be one of O, B-X, I-X, of BIOES also E-X, S-X, but is -1 instead"
    ):
        load_split(TASKS["ncbi-disease"], tmp_path, "dev")
