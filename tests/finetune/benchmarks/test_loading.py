"""Every loader on the real files (counts of the data's README) and, for sets not there, on hand-made official
layouts."""

import gzip
import json

import pytest

from megatron_alum.config.finetune import CustomTaskConfig
from megatron_alum.finetune.benchmarks.loading import find_files, has_split, load_split, tag_names
from megatron_alum.finetune.benchmarks.readers import read_csv, read_rows
from megatron_alum.finetune.benchmarks.tasks import TASKS, custom_task, task_named

# (task, split): examples. SNLI's 10,000 less those without agreement; ANLI's pooled dev is the sum of its rounds.
COUNTS = {
    ("cola", "train"): 8551,
    ("cola", "dev"): 1043,
    ("sst2", "dev"): 872,
    ("stsb", "train"): 5749,
    ("stsb", "dev"): 1500,
    ("rte", "train"): 2490,
    ("rte", "dev"): 277,
    ("wnli", "train"): 635,
    ("wnli", "dev"): 71,
    ("qnli", "dev"): 5463,
    ("mnli", "train"): 10000,
    ("mnli", "dev"): 9815,
    ("mnli", "dev_mismatched"): 9832,
    ("snli", "dev"): 9842,
    ("snli", "test"): 9824,
    ("scitail", "test"): 2126,
    ("anli", "dev"): 3198,
    ("anli", "dev_r1"): 1000,
    ("anli", "dev_r2"): 1000,
    ("anli", "dev_r3"): 1198,
    ("squad-v1.1", "dev"): 10570,
    ("squad-v2", "dev"): 11873,
    ("adv-squad", "add_sent"): 3560,
    ("adv-squad", "add_one_sent"): 1787,
    ("swag", "train"): 1665,
    ("swag", "dev"): 556,
    ("swag", "test"): 555,
    ("hellaswag", "dev"): 5000,
    ("ncbi-disease", "train"): 5424,
    ("ncbi-disease", "dev"): 923,
    ("ncbi-disease", "test"): 940,
    ("jnlpba", "dev"): 1890,
    ("jnlpba", "test"): 3987,
}


@pytest.mark.requires_shared_data
@pytest.mark.parametrize(("task", "split"), list(COUNTS))
def test_real_files_give_the_published_counts(shared_data, task, split):
    examples = load_split(TASKS[task], shared_data, split)
    assert len(examples) == COUNTS[task, split]
    kind = TASKS[task].kind
    if kind in ("classification", "choice"):
        classes = 4 if kind == "choice" else len(TASKS[task].labels)
        assert {example["label"] for example in examples} == set(range(classes))
    if kind == "spans":
        inside = [e["context"][a["answer_start"] :].startswith(a["text"]) for e in examples for a in e["answers"]]
        assert all(inside)


@pytest.mark.slow
@pytest.mark.requires_shared_data
@pytest.mark.parametrize(
    ("task", "split", "count"), [("squad-v1.1", "train", 87599), ("sst2", "train", 67349), ("jnlpba", "train", 16969)]
)
def test_large_real_files(shared_data, task, split, count):
    assert len(load_split(TASKS[task], shared_data, split)) == count


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_mrpc_in_the_original_layout(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path / "MRPC/msr_paraphrase_train.txt", header + '1\t10\t11\tHe said "hi.\tHe greeted.\n')
    assert load_split(TASKS["mrpc"], tmp_path, "train") == [
        {"id": "0", "first": 'He said "hi.', "second": "He greeted.", "label": 1}
    ]


def test_qqp_columns_and_rows_broken_in_two(tmp_path, capsys):
    """The official train.tsv has rows broken in two; a submission, however, needs every row of the test file."""
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    whole, broken = "7\t1\t2\tA?\tB?\t0\n", '8\t1\t2\t"Who?\n"\tWas he real?\t0\n'
    write(tmp_path / "train.tsv", header + whole)
    assert load_split(TASKS["qqp"], tmp_path, "train")[0]["label"] == 0
    assert capsys.readouterr().out == ""
    write(tmp_path / "train.tsv", header + broken + whole)
    assert [example["id"] for example in load_split(TASKS["qqp"], tmp_path, "train")] == ["7"]
    message = f"{tmp_path / 'train.tsv'}: 2 rows with fewer than 6 columns are skipped\n"
    assert capsys.readouterr().out == message
    write(tmp_path / "train.tsv", header + "7\t1\t2\tA?\tB?\t0\tmore\n")
    with pytest.raises(ValueError, match=r"train.tsv:2 must have 6 tab-separated columns .* has 7 instead"):
        load_split(TASKS["qqp"], tmp_path, "train")
    write(tmp_path / "test.tsv", "id\tquestion1\tquestion2\n0\tA?\n")
    with pytest.raises(ValueError, match=r"test.tsv:2 must have 3 tab-separated columns .* has 2 instead"):
        load_split(TASKS["qqp"], tmp_path, "test")
    write(tmp_path / "train.tsv", "question\tsentence\tlabel\nA\tB\n")
    with pytest.raises(ValueError, match=r"train.tsv:2 must have 3 tab-separated columns"):
        load_split(TASKS["qnli"], tmp_path, "train")


def test_glue_test_files_without_labels(tmp_path):
    write(tmp_path / "CoLA/test.tsv", "index\tsentence\n0\tBill whistled.\n")
    assert load_split(TASKS["cola"], tmp_path, "test") == [
        {"id": "0", "first": "Bill whistled.", "second": None, "label": None}
    ]


def test_diagnostic_set_and_its_training_files(tmp_path):
    write(tmp_path / "AX/diagnostic.tsv", "index\tsentence1\tsentence2\n0\tA cat.\tA pet.\n")
    write(tmp_path / "MNLI/train.tsv", "index\tsentence1\tsentence2\tgold_label\n0\tA\tB\tneutral\n")
    assert load_split(TASKS["ax"], tmp_path, "test")[0]["label"] is None
    assert load_split(TASKS["ax"], tmp_path, "train")[0]["label"] == 1
    # GLUE's diagnostic.tsv has no labels to validate on: MNLI's development set has.
    with pytest.raises(ValueError, match=r"dev files of ax, but none of MNLI/dev_matched.tsv"):
        load_split(TASKS["ax"], tmp_path, "dev")
    write(tmp_path / "MNLI/dev_matched.tsv", "index\tsentence1\tsentence2\tgold_label\n0\tA\tB\tcontradiction\n")
    assert load_split(TASKS["ax"], tmp_path, "dev")[0]["label"] == 2
    assert not has_split(TASKS["ax"], tmp_path, "diagnostic")
    write(tmp_path / "diagnostic-full.tsv", "Domain\tPremise\tHypothesis\tLabel\nNews\tA.\tB.\tneutral\n")
    assert load_split(TASKS["ax"], tmp_path, "diagnostic")[0]["label"] == 1
    assert load_split(TASKS["ax"], tmp_path, "dev")[0]["label"] == 2


def test_fever_as_nli_and_the_combination(tmp_path):
    write(tmp_path / "nli_fever/train_fitems.jsonl", json.dumps({"context": "E", "query": "C", "label": "REFUTES"}))
    hidden = json.dumps({"context": "E", "query": "C", "label": "hidden"})  # what the official test file says
    write(tmp_path / "nli_fever/test_fitems.jsonl", hidden)
    assert load_split(TASKS["fever"], tmp_path, "test")[0]["label"] is None
    write(tmp_path / "MNLI/train.tsv", "index\tsentence1\tsentence2\tgold_label\n0\tA\tB\tentailment\n")
    rows = [{"sentence1": "A", "sentence2": "B", "gold_label": label} for label in ("neutral", "-")]
    (tmp_path / "snli_1.0").mkdir()
    with gzip.open(tmp_path / "snli_1.0/snli_1.0_train.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))
    for number in (1, 2, 3):
        row = {"uid": f"u{number}", "context": "A", "hypothesis": "B", "label": "c"}
        write(tmp_path / f"anli_v1.0/R{number}/train.jsonl", json.dumps(row))
    labels = [example["label"] for example in load_split(TASKS["anli-all"], tmp_path, "train")]
    assert labels == [0, 1, 2, 2, 2, 2]


def test_bc2gm_layout(tmp_path):
    write(tmp_path / "BC2GM-IOB/train.tsv", "Com\tO\nalkaline\tB-GENE\nphosphatase\tI-GENE\n\n\nX\tO\n")
    examples = load_split(TASKS["bc2gm"], tmp_path, "train")
    assert [example["tokens"] for example in examples] == [["Com", "alkaline", "phosphatase"], ["X"]]
    assert tag_names(examples) == ("O", "B-GENE", "I-GENE")
    write(tmp_path / "BC2GM-IOB/train.tsv", "Com\tO\nalkaline\n")
    with pytest.raises(ValueError, match=r"train.tsv:2 must be a token, a tab and a tag"):
        load_split(TASKS["bc2gm"], tmp_path, "train")


def test_swag_and_hellaswag_layouts(tmp_path):
    header = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
    write(tmp_path / "val.csv", header + '0,v,1,"A man, old. He","A man, old.",He,gold,runs.,eats.,flies.,sleeps.,3\n')
    example = load_split(TASKS["swag"], tmp_path, "dev")[0]
    assert (example["first"], example["second"], example["endings"][3], example["label"]) == (
        "A man, old.",
        "He",
        "sleeps.",
        3,
    )
    row = {"ind": 4, "ctx_a": "A.", "ctx_b": "she", "ctx": "A. she", "endings": ["a", "b", "c", "d"], "label": ""}
    write(tmp_path / "hellaswag_test.jsonl", json.dumps(row))
    example = load_split(TASKS["hellaswag"], tmp_path, "test")[0]
    assert (example["first"], example["second"], example["label"]) == ("A.", "she", None)


SWAG_HEADER = "sent1,sent2,ending0,ending1,ending2,ending3,label\n"
HELLASWAG = {"ctx": "x", "endings": ["a", "b", "c", "d"]}


@pytest.mark.parametrize(
    ("task", "name", "text", "message"),
    [
        ("sst2", "train.tsv", "sentence\tlabel\ngood\t1\nbad\t\n", r"train.tsv:3: the label must be given in every"),
        ("sst2", "train.tsv", "sentence\tscore\ngood\t1\n", r":2: a row must have a column label, but has sentence, s"),
        ("stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", r"train.tsv:2: the label must be a finite"),
        ("stsb", "train.tsv", "sentence1\tsentence2\tscore\na\tb\t-1.0\n", r"train.tsv:2: the label must be given"),
        ("swag", "train.csv", SWAG_HEADER + "S,T,a,b,c,d,3\nS,T,a,b,c,d,7\n", r"csv:3: the label must be from 0 to 3"),
        ("swag", "train.csv", SWAG_HEADER + "S,T,a,b,c,d,-1\n", r"train.csv:2: the label must be given"),
        ("swag", "train.csv", SWAG_HEADER + "S,T,a,b,c,d,-2\n", r"train.csv:2: the label must be from 0 to 3, but"),
        ("hellaswag", "hellaswag_train.jsonl", json.dumps({**HELLASWAG, "label": 9}), r":1: .* from 0 to 3, but is 9"),
        ("hellaswag", "hellaswag_train.jsonl", json.dumps({**HELLASWAG, "label": [1]}), r":1: .* string or a number"),
        ("hellaswag", "hellaswag_train.jsonl", json.dumps({**HELLASWAG, "label": None}), r":1: .* must be given in"),
    ],
)
def test_missing_and_impossible_labels_name_file_and_line(tmp_path, task, name, text, message):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        load_split(TASKS[task], tmp_path, "train")


def test_only_whole_test_files_may_be_without_labels(tmp_path):
    write(tmp_path / "test.tsv", "sentence\tlabel\ngood\t\nbad\t\n")
    assert [example["label"] for example in load_split(TASKS["sst2"], tmp_path, "test")] == [None, None]
    write(tmp_path / "test.tsv", "sentence\tlabel\ngood\t1\nbad\t\n")
    with pytest.raises(ValueError, match=r"test.tsv:3: the label must be given in every row of test"):
        load_split(TASKS["sst2"], tmp_path, "test")


def test_custom_task_in_csv_with_own_columns(tmp_path):
    write(tmp_path / "dev.csv", 'body,verdict\n"fine, really",yes\n')
    columns = {"text_column": "body", "label_column": "verdict", "labels": ("no", "yes")}
    task = custom_task(CustomTaskConfig(validation_file=str(tmp_path / "dev.csv"), **columns))
    assert load_split(task, ".", "dev") == [{"id": "0", "first": "fine, really", "second": None, "label": 1}]


def custom(folder, labels, label="verdict"):
    train, dev, test = (str(folder / f"{split}.tsv") for split in ("train", "dev", "test"))
    columns = {"text_column": "body", "label_column": label, "labels": labels}
    return custom_task(CustomTaskConfig(validation_file=dev, test_file=test, **columns), train)


def test_custom_labels_that_are_missing(tmp_path):
    """A mistyped --label-column is an error; -1 is a class or a score where the user says so."""
    write(tmp_path / "train.tsv", "body\tverdict\nfine\t-1\nbad\t1\n")
    with pytest.raises(ValueError, match=r"train.tsv:2: a row must have a column zz, but has body, verdict instead"):
        load_split(custom(tmp_path, ("-1", "1"), "zz"), ".", "train")
    assert [example["label"] for example in load_split(custom(tmp_path, ("-1", "1")), ".", "train")] == [0, 1]
    assert [example["label"] for example in load_split(custom(tmp_path, ()), ".", "train")] == [-1.0, 1.0]
    write(tmp_path / "dev.tsv", "body\tverdict\nfine\t\n")
    with pytest.raises(ValueError, match=r"dev.tsv:2: the label must be given in every row of dev"):
        load_split(custom(tmp_path, ()), ".", "dev")
    write(tmp_path / "test.tsv", "body\nfine\n")
    assert load_split(custom(tmp_path, ()), ".", "test")[0]["label"] is None


def test_wrong_folder_lists_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"train.tsv.*multinli_1.0_train.jsonl.*is in .*MNLI"):
        find_files(TASKS["mnli"], tmp_path, "train")
    assert not has_split(TASKS["anli-all"], tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dev.jsonl", '{"a": 1}\n{"a": \n', r"dev.jsonl:2 must be a JSON object, but does not parse"),
        ("dev.jsonl", "[1]\n", r"dev.jsonl:1 must be a JSON object, but is a list"),
        ("dev.csv", "a,b\n1,2\n1,2,3\n", r"dev.csv:3 must have 2 columns"),
        ("dev.csv", "", r"dev.csv:1 must be a header line"),
    ],
)
def test_malformed_rows_name_file_and_line(tmp_path, name, text, message):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name, name.split(".")[1]))


def test_invalid_bytes_and_damaged_archives_are_named(tmp_path):
    (tmp_path / "dev.csv").write_bytes(b"a,b\n1,\xff\n")
    with pytest.raises(ValueError, match=r"dev.csv:\d must be readable UTF-8 text"):
        list(read_csv(tmp_path / "dev.csv"))
    (tmp_path / "dev.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 1000)[:40])
    with pytest.raises(ValueError, match="must be readable UTF-8 text"):
        list(read_csv(tmp_path / "dev.csv.gz"))


def test_unknown_label_and_unknown_task(tmp_path):
    write(tmp_path / "dev.tsv", "sentence\tlabel\nx\tmaybe\n")
    with pytest.raises(ValueError, match=r"dev.tsv:2: the label must be one of 0, 1, but is 'maybe'"):
        load_split(TASKS["sst2"], tmp_path, "dev")
    with pytest.raises(ValueError, match=r"--task must be one of cola, sst2"):
        task_named("imdb")
