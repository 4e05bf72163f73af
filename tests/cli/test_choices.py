"""A misspelled value of every option that has choices, in every command: the refusal names the nearest one.

The table comes from the configurations behind the commands, so that a new option is in it as soon as it is declared.
"""

import re
import sys

import pytest

from megatron_alum.cli import main as console
from megatron_alum.config.cli import build_config, parse_config
from megatron_alum.config.fields import options_of
from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.config.parser import Parser
from megatron_alum.config.words import did_you_mean, not_one_of
from megatron_alum.finetune.benchmarks.tasks import TASKS
from tests.cli.test_places import CONFIGURATIONS

MANY = {command: [option for option in options_of(cls) if option.words] for command, cls in CONFIGURATIONS.items()}


def misspelled(word):
    """The word with two letters swapped, one doubled, one left out, in capitals, with an underscore for a dash."""
    middle = len(word) // 2
    yield word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]
    yield word[:middle] + word[middle] + word[middle:]
    yield word[:middle] + word[middle + 1 :]
    yield word.upper()
    yield word.replace("-", "_").replace(".", "")


def distance(a, b):
    """Levenshtein's, by the recurrence."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y)))
        rows.append(row)
    return rows[-1][-1]


@pytest.mark.parametrize(("command", "option"), [(c, o) for c, found in MANY.items() for o in found])
def test_a_misspelled_value_names_the_nearest(command, option):
    for word in option.words:
        wrong = [w for w in misspelled(word) if len(word) > 3 and w.lower() not in option.words]
        for value in (w for w in wrong if option.choices or w.lower() not in ("yes", "no", "on", "off", "1", "0")):
            with pytest.raises(ValueError) as caught:
                parse_config(CONFIGURATIONS[command], [option.flag, value])
            said = str(caught.value)
            wanted = f"one of {', '.join(option.words)}" if option.choices else "true or false"
            assert said.startswith(f"{option.flag} must be {wanted}, but is {value!r} instead."), said
            guess = re.search(r"Did you mean (\S+)\?$", said)
            best = min(distance(value.lower(), other) for other in option.words)
            assert guess and distance(value.lower(), guess[1]) <= best + 1, said


@pytest.mark.parametrize(
    ("argv", "guess"),
    [
        ("finetune --model m --output o --task mnnli", "mnli"),
        ("finetune --model m --output o --task SST-2", "sst2"),
        ("attack --model m --output o --task squad", "squad-v2"),
        ("finetune --method alumm", "alum"),
        ("pretrain --model-type robert", "roberta"),
        ("pretrain --alum-projection clmap", "clamp"),
        ("finetune --alum-projection clmap", "clamp"),
        ("pretrain --masking hole_word", "whole_word"),
        ("pretrain --bf16 flase", "false"),
        ("preprocess --format jsnol", "jsonl"),
        ("train-tokenizer --type wordpeice", "wordpiece"),
        ("convert to-hf --architecture encodr", "encoder"),
        ("convert to-fh", "to-hf"),
        ("convert from-hf --dtype bf16", "bfloat16"),
        ("inspect wiki --masking ngrm", "ngram"),
        ("estimate --model-size bse", "base"),
        ("attack --word-attack textfoler", "textfooler"),
        ("pretrian", "pretrain"),
        ("train_tokenizer", "train-tokenizer"),
        ("finetune --taks mnli", "--task"),
        ("finetune --ouput x --taks mnli", "--output"),
        ("merge --inputs x", "--input"),
        ("convert to-hf --laod x", "--load"),
        ("doctor --verbose", None),
    ],
)
def test_what_a_user_would_type(argv, guess, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["megatron-alum", *argv.split()])
    with pytest.raises(SystemExit) as stopped:
        console.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert (f"Did you mean {guess}?" in error) if guess else ("See --help." in error), error


def test_values_that_code_passes_are_refused_in_the_same_words():
    """A configuration built without a command line, and the functions that take a name."""
    from megatron_alum.finetune.benchmarks.tasks import task_named
    from megatron_alum.finetune.methods.presets import method
    from megatron_alum.ops.dispatch import select

    for refused in (
        lambda: build_config(FinetuneConfig, [{"model": "m", "output": "o", "task": "rte", "method": "alumm"}]),
        lambda: task_named("mnnli"),
        lambda: method("alumm"),
        lambda: select("refrence", None),
    ):
        with pytest.raises(ValueError, match=r"must be one of .*, but is '\w+' instead\. Did you mean \w+\?"):
            refused()


def test_the_help_of_task_names_those_of_the_table():
    (option,) = (option for option in options_of(FinetuneConfig) if option.flag == "--task")
    assert option.doc.partition(";")[0].split() == [*TASKS, "custom"]


def test_nothing_is_suggested_for_what_is_like_nothing():
    assert not_one_of("`x`", "zzz", ("alum", "none")) == "`x` must be one of alum, none, but is 'zzz' instead."
    assert did_you_mean("--batch_size", ["--per-device-train-batch-size", "--batch-size"]) == (
        " Did you mean --batch-size?"
    )


def test_the_parser_of_scripts_refuses_in_sentences():
    parser = Parser(description="One line.")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, required=True)
    for argv, sentence in (
        (["--rows", "1", "--device", "cdua"], "--device must be one of cpu, cuda, but is 'cdua' instead. Did you mean"),
        (["--rwos", "1"], "--rwos is not an option of this program. Did you mean --rows?"),
        (["--rows", "1", "more"], "more must follow the option that it belongs to, but follows none. See --help."),
        (["--rows", "1", "-x"], "-x is not an option of this program."),
        ([], "the following arguments are required: --rows. See --help."),
    ):
        with pytest.raises(ValueError) as caught:
            parser.parse_args(argv)
        assert str(caught.value).startswith(sentence)
