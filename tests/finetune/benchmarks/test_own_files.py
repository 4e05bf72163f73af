"""Files as people write them: what pandas, spreadsheets and hands make of the same rows, read alike or refused."""

import csv
import json
import random

import pytest

from megatron_alum.config.finetune import CustomTaskConfig
from megatron_alum.finetune.benchmarks.features import Collator
from megatron_alum.finetune.benchmarks.loading import has_split, load_split
from megatron_alum.finetune.benchmarks.tasks import custom_task
from megatron_alum.finetune.runs.prepare import found_labels, shares, whole_questions

HARD = ['say "hi"', "a\ttab", "two\nlines", ' " ', '"quoted"', "comma, here"]
HARD += ["x" * 140_000, "caf\u00e9", "O'Neil", "None"]


def task_of(path, **changes):
    custom = CustomTaskConfig(**{"text_column": "body", "labels": ("0", "1"), "validation_file": str(path), **changes})
    return custom_task(custom, str(path))


def write(path, rows):
    """As pandas' to_csv, to_json and to_parquet do."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")
            writer.writerow(["body", "label"])
            for row in rows:
                writer.writerow([row["body"], row["label"]])
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv", "a.TSV", "a.jsonl", "a.json", "a.parquet"])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_library_writes_is_what_is_read(tmp_path, name, seed):
    rng = random.Random(seed)
    rows = [{"body": rng.choice(HARD) + rng.choice(HARD[:-4]), "label": rng.choice([0, 1])} for _ in range(12)]
    write(tmp_path / name, rows)
    found = load_split(task_of(tmp_path / name), ".", "dev")
    assert [(example["first"], example["label"]) for example in found] == [(row["body"], row["label"]) for row in rows]


def test_a_json_file_of_the_hub_and_one_of_lines(tmp_path):
    rows = [{"body": "good", "label": 1}, {"body": "bad", "label": 0}]
    columns = {name: {"0": rows[0][name], "1": rows[1][name]} for name in ("body", "label")}  # pandas' own way
    split = {"columns": ["body", "label"], "index": [0, 1], "data": [["good", 1], ["bad", 0]]}
    whole = (json.dumps(content) for content in ({"data": rows}, rows, columns, split))
    for text in (*whole, "\n\n".join(map(json.dumps, rows))):
        (tmp_path / "a.json").write_text(text)
        assert [example["label"] for example in load_split(task_of(tmp_path / "a.json"), ".", "dev")] == [1, 0]


@pytest.mark.parametrize(("name", "gap"), [("a.csv", "\n"), ("a.csv", "\n  \n"), ("a.tsv", "\n"), ("a.jsonl", "\n \n")])
def test_blank_lines_are_no_rows(tmp_path, name, gap):
    write(tmp_path / name, [{"body": "good", "label": 1}, {"body": "bad", "label": 0}])
    lines = (tmp_path / name).read_text().splitlines(keepends=True)
    (tmp_path / name).write_text(gap.join(lines) + gap)
    assert len(load_split(task_of(tmp_path / name), ".", "dev")) == 2


def test_a_tab_separated_file_with_stray_quotes_keeps_them(tmp_path):
    (tmp_path / "a.tsv").write_text('body\tlabel\n"He said\t1\nfine"\t0\n5" wide\t1\n')
    found = load_split(task_of(tmp_path / "a.tsv"), ".", "dev")
    assert [example["first"] for example in found] == ['"He said', 'fine"', '5" wide']


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"body": null, "label": 1}', r"a.jsonl:1: a text must be a string, but is null"),
        ("a.jsonl", '\n{"body": ["awful", "film"], "label": 1}', r"a.jsonl:2: a text must be a string, but is a list"),
        ("a.json", '[{"body": {"a": 1}, "label": 1}]', r"a.json:1: a text must be a string, but is a dict"),
        ("a.jsonl", '{"body": NaN, "label": 1}', r"a.jsonl:1: a text must be a string, but is NaN"),
        ("a.jsonl", '{"body": "x", "label": [1]}', r"a.jsonl:1: a label must be a string or a number, but is a list"),
        ("a.jsonl", '{"body": "x", "label": NaN}', r"a.jsonl:1: the label must be given in every row of dev"),
        ("a.json", "[1, 2]", r"a.json must hold a list of JSON objects"),
        ("a.json", '[{"body": "x",\n "label": }]', r"a.json:2 must be JSON, but does not parse"),
        ("a.csv", "body,label\ngood,1\nbad,7\n", r"a.csv:3: the label must be one of 0, 1, but is '7'"),
        ("a.csv", "body,body,label\na,b,1\n", r"a.csv:1 must name each column once, but has 'body' 2 times"),
        ("a.xlsx", "PK", r"a.xlsx must end in .tsv, .txt, .csv"),
        ("a.parquet", "PAR", r"a.parquet must be a Parquet file"),
        ("a.tsv", "body\tlabel\ngood\t1\nbad\n", r"a.tsv:3 must have 2 tab-separated columns"),
    ],
)
def test_anything_else_is_one_sentence_with_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_split(task_of(tmp_path / name), ".", "dev")


@pytest.mark.parametrize("line", [2, 3, 57, 801, 5000])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.conll"])
def test_bytes_that_are_no_utf_8_name_their_own_line(tmp_path, name, line):
    rows = [b'{"body": "x", "label": 1}' if name.endswith(("l", "n")) else b"x,1"] * 5001
    rows[0] = rows[0] if name.endswith(("l", "n")) else b"body,label"
    rows[line - 1] += b" caf\xe9"
    (tmp_path / name).write_bytes(b"\n".join(rows))
    kind = {"kind": "tags", "labels": ()} if name == "a.conll" else {}
    with pytest.raises(ValueError, match=rf"{name}:(\d+) must be"):
        load_split(task_of(tmp_path / name, **kind), ".", "dev")
    if name in ("a.jsonl", "a.json"):
        with pytest.raises(ValueError, match=rf"{name}:{line} must be readable UTF-8 text"):
            load_split(task_of(tmp_path / name), ".", "dev")


def test_blanks_around_column_names_and_labels_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text("body , label\ngood,1\nbad, 0\n")
    assert [example["label"] for example in load_split(task_of(tmp_path / "a.csv"), ".", "dev")] == [1, 0]


def test_class_labels_of_a_parquet_file_of_the_hub_are_names(tmp_path):
    """As the `datasets` library writes them: ids, and the names in the schema's metadata."""
    import pyarrow
    from pyarrow import parquet

    label = {"names": ["O", "B-X"], "_type": "ClassLabel"}
    for name, ids, spec in (("label", [1, 0], label), ("ner_tags", [[1], [0]], {"feature": label, "_type": "List"})):
        info = json.dumps({"info": {"features": {name: spec}}})
        table = pyarrow.table({"body": ["x", "y"], "tokens": [["x"], ["y"]], name: ids})
        parquet.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "a.parquet")
        kind = {"labels": ("O", "B-X")} if name == "label" else {"kind": "tags", "labels": ()}
        found = load_split(task_of(tmp_path / "a.parquet", **kind), ".", "dev")
        assert [e["label"] if name == "label" else e["tags"] for e in found] == ids or found[0]["tags"] == ["B-X"]


SPAN = {"id": "q", "context": "a blue sky", "question": "what?"}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("blue", "answers must be objects of `text` and `answer_start`"),
        ({"text": ["blue"], "answer_start": []}, "answers must be objects"),
        ([{"text": "blue"}], "answers must be objects"),
        ([{"text": 5, "answer_start": 2}], "answers must be objects"),
        ([{"text": "blue", "answer_start": 3}], "must stand at its `answer_start` 3 as 'blue'"),
        (None, "a.json:1: answers must be given in every row of dev"),
    ],
)
def test_answers_of_other_shapes(tmp_path, answers, message):
    (tmp_path / "a.json").write_text(json.dumps([{**SPAN, "answers": answers}]))
    with pytest.raises(ValueError, match=message):
        load_split(task_of(tmp_path / "a.json", kind="spans", labels=()), ".", "dev")


def test_questions_have_ids_of_their_own(tmp_path):
    task = task_of(tmp_path / "a.json", kind="spans", labels=())
    rows = [{**SPAN, "answers": []}] * 3
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="must have an id of its own, but 3 have 'q'"):
        load_split(task, ".", "dev")
    without = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    (tmp_path / "a.json").write_text(json.dumps(without))
    assert [example["id"] for example in load_split(task, ".", "dev")] == ["0", "1", "2"]


def test_whole_numbers_beside_an_empty_cell_are_the_classes_they_were(tmp_path):
    (tmp_path / "a.csv").write_text("body,label\ngood,1.0\nbad,0.0\n")
    assert [example["label"] for example in load_split(task_of(tmp_path / "a.csv"), ".", "dev")] == [1, 0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "1", "1"], ("classification", ("0", "1"))),
        (["10", "9", "2"], ("classification", ("2", "9", "10"))),
        (["up", "down"], ("classification", ("down", "up"))),
        (["1", "0.5"], ("regression", ())),
        (["1e-3", "-2.5"], ("regression", ())),
        (["1.0", "0.0"], ("classification", ("0", "1"))),
        (["2.0", "0.5", "1.0"], ("regression", ())),
        (["1.5", "none"], ("classification", ("1.5", "none"))),
    ],
)
def test_what_a_column_of_labels_is(labels, expected):
    assert found_labels(labels) == expected


def test_columns_of_labels_that_are_none(tmp_path):
    for labels in (["1", "1"], [str(i) for i in range(101)], []):
        with pytest.raises(ValueError, match="--label-column must hold from 2 to 100 classes"):
            found_labels(labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a", "b", "a")}, "--labels must name each class once, but has a 2 times"),
        ({"labels": ("a",)}, "--labels must name two or more classes"),
        ({"labels": ("a", "b"), "kind": "regression"}, "--labels must be left out with --kind regression"),
    ],
)
def test_labels_that_no_task_can_have(changes, message):
    with pytest.raises(ValueError, match=message):
        CustomTaskConfig(**changes)


def test_a_file_that_is_not_there_names_its_flag(tmp_path):
    missing = tmp_path / "no.csv"
    for split, flag in (("train", "--train-file"), ("dev", "--validation-file"), ("test", "--test-file")):
        task = task_of(missing, test_file=str(missing))
        assert has_split(task, ".", split), "a file that was named is not passed over"
        with pytest.raises(ValueError, match=f"{flag} must be a file, but .*no.csv does not exist"):
            load_split(task, ".", split)


def test_own_tags_spans_and_choices(tmp_path):
    tags = {"tokens": ["Paris", "now"], "tags": ["B-LOC", "O"]}
    (tmp_path / "tags.jsonl").write_text(json.dumps(tags))
    (tmp_path / "tags.txt").write_text("Paris B-LOC\nnow O\n")
    for name in ("tags.jsonl", "tags.txt"):
        (example,) = load_split(task_of(tmp_path / name, kind="tags", labels=()), ".", "dev")
        assert (example["tokens"], example["tags"]) == (tags["tokens"], tags["tags"])
    flat = {"id": "q", "context": "a blue sky", "question": "what?"}
    flat["answers"] = {"text": ["blue"], "answer_start": [2]}
    nested = {"id": "q", "question": "what?", "answers": [{"text": "blue", "answer_start": 2}]}
    squad = {"data": [{"paragraphs": [{"context": "a blue sky", "qas": [nested]}]}]}
    for name, content in (("flat.json", [flat]), ("squad.json", squad), ("flat.jsonl", flat)):
        (tmp_path / name).write_text(json.dumps(content))
        (example,) = load_split(task_of(tmp_path / name, kind="spans", labels=()), ".", "dev")
        assert (example["context"], example["answers"][0]["text"]) == ("a blue sky", "blue")
    (tmp_path / "choice.csv").write_text("body,ending0,ending1,ending2,label\nx,a,b,c,2\ny,a,b,,1\n")
    found = load_split(task_of(tmp_path / "choice.csv", kind="choice", labels=()), ".", "dev")
    assert [(example["endings"], example["label"]) for example in found] == [(["a", "b", "c"], 2), (["a", "b"], 1)]


def test_a_sample_of_adversarial_questions_keeps_their_variants_together():
    rows = [{"id": f"q{i}{end}"} for i in range(20) for end in ("", "-a", "-b", "-c")[: 1 + i % 4]]
    for limit in range(1, len(rows)):
        found = [row["id"] for row in whole_questions(rows, limit)]
        kept = {key.partition("-")[0] for key in found}
        assert found == [row["id"] for row in rows if row["id"].partition("-")[0] in kept]
        assert 0 < len(found) <= max(limit, 4)
    assert whole_questions(rows, len(rows)) == rows


def test_shares_of_a_sample():
    assert shares([[0] * 1000, [0] * 1000, [0] * 1200], 320) == [100, 100, 120]
    assert shares([[0] * 3, [0] * 4], None) == [3, 4] == shares([[0] * 3, [0] * 4], 7)
    for limit in range(1, 30):
        assert sum(shares([[0] * 7, [0] * 11, [0] * 13], limit)) == limit


class Pads:
    """The part of a tokenizer that the collator uses."""

    def pad(self, rows, return_tensors, padding_side):
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        return {name: torch.tensor([row[name] + [0] * (width - len(row[name])) for row in rows]) for name in rows[0]}


def test_rows_of_two_to_four_candidates_in_one_batch_give_what_each_gives_alone():
    import torch

    from megatron_alum.finetune.runs.models import mask_missing_candidates
    from tests.finetune.toy import tiny_model

    model = tiny_model("choice").eval()
    mask_missing_candidates(model)
    rng = random.Random(0)
    features = []
    for count in (2, 4, 3):
        ids = [[rng.randrange(5, 60) for _ in range(rng.randrange(4, 9))] for _ in range(count)]
        features.append({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": count - 1})
    collate = Collator(Pads(), "choice")
    with torch.no_grad():
        together = model(**collate(features))
        alone = [model(**collate([feature])) for feature in features]
    for row, single in zip(together.logits, alone, strict=True):
        count = single.logits.shape[1]
        torch.testing.assert_close(row[:count], single.logits[0], rtol=1e-4, atol=1e-5)
        assert (row[count:] == -1e4).all()
    torch.testing.assert_close(together.loss, torch.stack([single.loss for single in alone]).mean())


@pytest.mark.parametrize("late", [0, 1, 2])
def test_offsets_that_begin_late_are_repaired(late):
    """Every word's first token begins `late` characters into it; the gold answer still comes back from its tokens."""
    from megatron_alum.finetune.benchmarks.features import answer_tokens, covering, surviving_share

    context = "Paris lies on the Seine river"
    words, place = [], 0
    for word in context.split():
        place = context.index(word, place)
        words.append((place + min(late, len(word) - 1), place + len(word)))
        place += len(word)
    example = {"context": context, "answers": [{"text": "Seine river", "answer_start": 18}]}

    def share(offsets):
        start, end = answer_tokens(offsets, example)
        feature = {"example": 0, "offsets": offsets, "start_positions": start, "end_positions": end}
        return surviving_share([example], [feature])

    raw, repaired = [None, *words], covering([None, *words], context)
    assert share(raw) == (1.0 if late == 0 else 0.0) and share(repaired) == 1.0
    assert late or repaired == raw
