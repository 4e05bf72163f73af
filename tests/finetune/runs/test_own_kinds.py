"""Tags, spans and choices in files of the user's own, from training to prediction, through tools/finetune.py; gold
labels that tokenizers lose.
"""

import json
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_alum.finetune.benchmarks.features import Encoder, surviving_share
from megatron_alum.finetune.runs.prepare import with_whole_gold
from tests.finetune.runs.test_tools import WORDS, encoder, rows_of, run_tool  # noqa: F401 (encoder is a fixture)

GOLD = {"tags": "tags", "spans": "answers", "choice": "label"}


def row(kind, index, rng):
    """One learnable example: the adjective is the entity, the answer, the right ending."""
    words = [rng.choice(WORDS[:4]), rng.choice(WORDS[8:]), rng.choice(WORDS[8:])]
    if kind == "tags":
        return {"tokens": words, "tags": ["B-GOOD", "O", "O"]}
    if kind == "spans":
        answers = {"text": [words[0]], "answer_start": [0]}
        return {"id": f"q{index}", "context": " ".join(words), "question": "film", "answers": answers}
    endings, label = [rng.choice(WORDS[4:8]) for _ in range(rng.randrange(2, 5))], rng.randrange(2)
    endings[label] = words[0]
    return {"sentence": words[1], "endings": endings, "label": label}


@pytest.mark.parametrize("kind", GOLD)
def test_from_training_to_prediction(encoder, tmp_path, kind):  # noqa: F811
    rng, rows = random.Random(0), {}
    for split, count in (("train", 48), ("dev", 16)):
        rows[split] = [row(kind, index, rng) for index in range(count)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows[split]))
    bare = [{name: value for name, value in one.items() if name != GOLD[kind]} for one in rows["dev"]]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(one) + "\n" for one in bare))
    dev, out = ("--validation-file", tmp_path / "dev.json"), tmp_path / "out"
    task = ("--task", "custom", "--kind", kind, "--train-file", tmp_path / "train.json", *dev)
    more = ("--num-train-epochs", 2, "--learning-rate", 5e-3, "--per-device-train-batch-size", 8, "--alum")
    assert run_tool("finetune", "--model", encoder, *task, *more, "--output", out) == 0
    finished = ("--model", out / "model")
    assert run_tool("finetune", *finished, "--evaluate-only", *dev, "--output", tmp_path / "ev") == 0
    assert run_tool("finetune", *finished, "--predict-file", tmp_path / "new.jsonl", "--output", tmp_path / "pr") == 0

    trained, evaluated = rows_of(out / "results.jsonl"), rows_of(tmp_path / "ev" / "results.jsonl")
    values = [{r["metric"]: r["value"] for r in some} for some in (trained, evaluated)]
    assert values[1] == pytest.approx(values[0], abs=1e-4)  # thresholds are logits
    assert not (tmp_path / "pr" / "results.jsonl").exists(), "what has no gold has no score"
    name = {"tags": "conll", "spans": "json", "choice": "tsv"}[kind]
    expected = (tmp_path / "ev" / f"dev.{name}").read_text()
    if kind == "tags":  # without the column of the gold
        columns = [line.split("\t") for line in expected.splitlines()]
        expected = "".join("\t".join(cells[::2]) + "\n" if len(cells) > 1 else "\n" for cells in columns)
    assert (tmp_path / "pr" / f"predict.{name}").read_text() == expected


def test_tokens_alone_one_a_line(encoder, tmp_path, capsys):  # noqa: F811
    """Prediction takes a tag file without its tags; training names the line, and no file may be of both sorts."""
    (tmp_path / "train.conll").write_text("good B-G\nfilm O\n\n" * 8)
    (tmp_path / "bare.conll").write_text("good\nfilm\n\nplot\n")
    (tmp_path / "mixed.conll").write_text("good\nfilm O\n")
    task = ("--model", encoder, "--task", "custom", "--kind", "tags", "--validation-file", tmp_path / "train.conll")
    for name, message in (
        ("bare", "bare.conll:1: tags must be given"),
        ("mixed", "mixed.conll:2 must be only a token"),
    ):
        arguments = (*task, "--train-file", tmp_path / f"{name}.conll", "--output", tmp_path / name)
        assert run_tool("finetune", *arguments, expect_error=True) == 2
        assert message in capsys.readouterr().err
    output = tmp_path / "out"
    run_tool("finetune", *task, "--train-file", tmp_path / "train.conll", "--output", output, "--max-steps", 1)
    new = ("--predict-file", tmp_path / "bare.conll", "--output", tmp_path / "new")
    assert run_tool("finetune", "--model", output / "model", *new) == 0
    lines = (tmp_path / "new" / "predict.conll").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["good", "film", "", "plot", ""]


def tokenizer(model, pre=None, **special):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre or pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="p", model_input_names=["input_ids"], **special)


LETTERS = {letter: i for i, letter in enumerate("pabcdefu")}
TAGGED = [{"tokens": ["ab", "zz", "c"], "tags": ["B-X", "B-X", "O"]}, {"tokens": ["zz"], "tags": ["B-X"]}]


def test_words_that_a_tokenizer_drops_are_given_its_unknown_token():
    """A BPE without an unknown entry drops letters it does not know; with one named, nothing is lost."""
    drops = tokenizer(models.BPE(vocab=LETTERS, merges=[]), unk_token="u")
    plain = Encoder(drops, "tags", 16, 4, ("O", "B-X"))
    assert surviving_share(TAGGED, plain.encode(TAGGED)) == pytest.approx(1 / 3)
    repaired = with_whole_gold(plain, TAGGED)
    assert repaired.repairs and surviving_share(TAGGED, repaired.encode(TAGGED)) == 1.0
    (first, _), (before, _) = repaired.encode(TAGGED), plain.encode(TAGGED)
    assert first["words"] == [0, None, 1, 2] and before["words"] == [0, None, 2]


def test_what_no_repair_saves_is_warned_of_with_its_share():
    encoder = Encoder(tokenizer(models.BPE(vocab=LETTERS, merges=[])), "tags", 16, 4, ("O", "B-X"))  # noqa: F811
    with pytest.warns(UserWarning, match=r"33.3% of the words inside entities have a token to be found by"):
        assert not with_whole_gold(encoder, TAGGED).repairs


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("first", [[], [pre_tokenizers.Digits()], [pre_tokenizers.WhitespaceSplit()]])
def test_bytes_keep_every_word_of_a_sentence(trim, space, first):
    """Every way to set up byte-level BPE, whose offsets begin early, late or at the word: tags go by words."""
    from megatron_alum.finetune.runs.models import _expect_words

    alphabet = {"p": 0, **{letter: i + 1 for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    level = pre_tokenizers.ByteLevel(add_prefix_space=space, trim_offsets=trim)
    steps = pre_tokenizers.Sequence([*first, level]) if first else level
    made = tokenizer(models.BPE(vocab=alphabet, merges=[]), steps)
    _expect_words(made)
    rows = [{"tokens": ["Paris", "7up", "\u00e9t\u00e9", "x"], "tags": ["B-X", "I-X", "B-X", "B-X"]}]
    features = Encoder(made, "tags", 64, 4, ("O", "B-X", "I-X")).encode(rows)
    assert surviving_share(rows, features) == 1.0
    labels = [label for label in features[0]["labels"] if label >= 0]
    assert labels == [1, 2, 1, 1]
