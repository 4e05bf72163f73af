"""SQuAD files that are damaged in one place each: the error names the file and the place or question."""

import gzip
import json

import pytest

from megatron_alum.finetune.benchmarks.loading import load_split
from megatron_alum.finetune.benchmarks.tasks import TASKS


def squad_json(**changes):
    question = {"id": "q7", "question": "?", "answers": [{"text": "cd", "answer_start": 3}], **changes}
    return {"data": [{"paragraphs": [{"context": "ab cd", "qas": [question]}]}]}


@pytest.mark.parametrize("start", [0, 4, -2, 99])
def test_a_squad_answer_that_is_not_at_its_start_names_the_question(tmp_path, start):
    path = tmp_path / "train-v1.1.json"
    path.write_text(json.dumps(squad_json()))
    assert load_split(TASKS["squad-v1.1"], tmp_path, "train")[0]["answers"] == [{"text": "cd", "answer_start": 3}]
    path.write_text(json.dumps(squad_json(answers=[{"text": "cd", "answer_start": start}])))
    with pytest.raises(ValueError, match=rf"train-v1.1.json: question q7: .*`answer_start` {start} as 'cd', but"):
        load_split(TASKS["squad-v1.1"], tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data":\n [}', r"train-v1.1.json:2:3 must be SQuAD JSON, but does not parse"),
        ("[]", r"the top level must be as in SQuAD's JSON"),
        ('{"data": [{"paragraphs": []}, {}]}', r"data\[1\] must be as .*'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\].paragraphs\[0\] must be as .*'context'"),
        (json.dumps(squad_json(answers=[{"text": "cd"}])), r"data\[0\].paragraphs\[0\].qas\[0\] .*'answer_start'"),
        (json.dumps(squad_json()).replace('"id"', '"key"'), r"qas\[0\] must be as .*'id'"),
        (json.dumps(squad_json(answers=[{"text": 5, "answer_start": 3}])), r"qas\[0\] must be as "),
    ],
)
def test_malformed_squad_json_names_file_and_place(tmp_path, text, message):
    (tmp_path / "train-v1.1.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_split(TASKS["squad-v1.1"], tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-v1.1.json", b'{"data": "\xff"}'),
        ("train-v1.1.json.gz", gzip.compress(json.dumps(squad_json()).encode())[:40]),
        ("train-v1.1.json.gz", b"no archive"),
        ("train-v1.1.json.bz2", b"no archive"),
    ],
    ids=["no text", "half a gz", "no gz", "no bz2"],  # a gz holds the time it was made
)
def test_damaged_squad_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}:1 must be readable UTF-8 text"):
        load_split(TASKS["squad-v1.1"], tmp_path, "train")
