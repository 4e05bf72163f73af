"""Every command and flag in a document: the program exists and accepts them.

A program with a configuration dataclass parses the whole command, recipes and combinations included; for any other,
the flags must be in its --help. Nothing is run.
"""

import re
import shlex
from functools import cache

import pytest

from megatron_alum.cli.main import COMMANDS as COMMANDS_OF_PACKAGE
from megatron_alum.config.cli import parse_config
from megatron_alum.config.fields import options_of
from tests.docs.pages import DOCUMENTS, ROOT, commands, name_of, prose

from program_options import PROGRAMS, configuration_of, help_of  # isort: skip  (found through pages.py)

COMMANDS = sorted({command for path in DOCUMENTS for command in commands(path.read_text())})
OTHER_WORDS = {"pip", "source", "mkdir", "cd"}
"""commands that are not ours"""
OTHER_FLAGS = {
    *("--help", "--no-build-isolation"),  # pip
    *("--nproc-per-node", "--nnodes", "--max-restarts", "--signal"),  # torchrun, sbatch
    *("--corpus", "--output", "--sentence"),  # examples/demo.py
}
ONE_FLAG = re.compile(r"--[a-z][a-z0-9-]*")
SIZES = {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12}
"""what a command would read from the run or model that it starts from"""
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


SCRIPT_OF = {
    **{"pretrain": "pretrain_bert_alum.py", "preprocess": "tools/preprocess_data.py", "doctor": "tools/doctor.py"},
    **{"train-tokenizer": "tools/train_tokenizer.py", "inspect": "tools/inspect_shards.py"},
    **{"merge": "tools/merge_shards.py", "convert": "tools/convert_checkpoint.py", "finetune": "tools/finetune.py"},
    **{"attack": "tools/attack.py", "report": "tools/make_report.py", "estimate": "tools/estimate_memory.py"},
}
"""sub-command of megatron-alum -> its script"""


def program_and_arguments(words):
    """("tools/x.py" or "tools/x.py SUBCOMMAND", its arguments) of `[torchrun ...] x.py ...`, `python -m a.x ...`."""
    program, arguments = found_program(words)
    with_subcommand = " ".join([program, *arguments[:1]])
    return (with_subcommand, arguments[1:]) if with_subcommand in PROGRAMS else (program, arguments)


def found_program(words):
    """("tools/x.py", all words after it)."""
    if words[0] == "megatron-alum":
        assert words[1] in SCRIPT_OF, f"megatron-alum has no {words[1]}"
        return SCRIPT_OF[words[1]], words[2:]
    if "-m" in words:
        at = words.index("-m") + 1
        return words[at].replace(".", "/") + ".py", words[at + 1 :]
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[at], words[at + 1 :]


@cache
def flags_in_help(program):
    printed = help_of(program)
    assert "usage:" in printed, f"python {program} --help prints no help: {printed!r}"
    return set(ONE_FLAG.findall(printed))


@cache
def flags_of(program):
    if program in PROGRAMS:
        return {"--config", *(option.flag for option in options_of(configuration_of(program)))}
    return flags_in_help(program)


def check(command):
    """Raises unless the command could be typed."""
    if re.match(r"\w+=\$\(", command):  # a variable for later lines
        return
    words = shlex.split(re.sub(r"^(\w+=\S+ )+", "", command))
    if words[0] == "make":
        assert words[1] in MAKE_TARGETS, f"there is no `make {words[1]}`"
        return
    if words[0] in OTHER_WORDS:
        return
    if words == ["megatron-alum", "--help"]:
        return
    assert words[0] in ("python", "torchrun", "megatron-alum"), f"{words[0]} is not known here"
    program, arguments = program_and_arguments(words)
    assert (ROOT / program.split()[0]).is_file(), f"{program} is not there"
    if program in PROGRAMS:
        if program == "tools/inspect_shards.py":
            arguments = ["--data-path", *arguments]
        is_start = program == "pretrain_bert_alum.py" and {"--load", "--init-from"} & set(arguments)
        defaults = {"data_path": ("unused",), "save": "unused"} if program == "tools/estimate_memory.py" else {}
        parse_config(
            configuration_of(program), arguments, defaults=defaults, infer=lambda given: SIZES if is_start else {}
        )
    elif arguments:
        unknown = set(ONE_FLAG.findall(" ".join(arguments))) - flags_in_help(program)
        assert not unknown, f"{program} has no {unknown}"
    missing = [word for word in arguments if word.startswith("examples/") and not (ROOT / word).exists()]
    assert not missing, f"{missing} is not there"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_typed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "make coffee",
        "docker run it",
        "python tools/absent.py",
        "python tools/finetune.py --model m --task rte --output o --alumm",
        "python tools/finetune.py --model m --task rte --output o --method none --alum-alpha 2",
        "torchrun pretrain_bert_alum.py --config examples/from_scratch.yaml --save run --alum-perturb layer",
        "python tools/convert_checkpoint.py to-hf --model m",
        "python tools/merge_shards.py --inputs a",
    ],
)
def test_a_wrong_command_is_seen(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError)):
        check(command)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_flags_in_the_text_exist(path):
    programs = {*PROGRAMS, *(f"tools/{tool.name}" for tool in (ROOT / "tools").glob("*.py"))} - {"tools/doctor.py"}
    code = re.findall(r"`([^`]+)`", prose(path.read_text()))
    named = {flag for words in code for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", words)}
    known = OTHER_FLAGS.union(*map(flags_of, sorted(programs))) if named else set()
    assert not named - known


def test_make_targets_in_the_text_exist():
    named = {name for path in DOCUMENTS for name in re.findall(r"`make ([a-z-]+)", path.read_text())}
    assert {"demo", "test", "docs"} <= named
    assert not named - MAKE_TARGETS


def test_every_sub_command_has_its_script():
    assert SCRIPT_OF.keys() == COMMANDS_OF_PACKAGE.keys()
    assert all((ROOT / script).is_file() for script in SCRIPT_OF.values())


def test_every_configuration_has_a_page():
    """A new command with a configuration of its own gets a page of flags."""
    fronts = [
        ROOT / "pretrain_bert_alum.py",
        *(ROOT / "tools").glob("*.py"),
        *(ROOT / "megatron_alum/cli").glob("*.py"),
    ]
    found = {name for path in fronts for name in re.findall(r"parse_config\(\s*(\w+)", path.read_text())}
    assert found == {target.split(":")[1] for target in PROGRAMS.values()}
