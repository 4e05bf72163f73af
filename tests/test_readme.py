"""Every command of the README exists: its script, its flags as the script's own --help lists them, its make target."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.finetune import toy

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
SCRIPTS = [command for command in COMMANDS if ".py" in command]


@cache
def help_of(script: str, *subcommand: str) -> str:
    run = subprocess.run(
        [sys.executable, str(ROOT / script), *subcommand, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("command", SCRIPTS)
def test_flags_of_a_command_are_in_its_help(command):
    words = shlex.split(command)
    script = next(word for word in words if word.endswith(".py"))
    arguments = words[words.index(script) + 1 :]
    assert (ROOT / script).is_file()
    subcommand = [arguments[0]] if arguments and arguments[0] in ("to-hf", "from-hf") else []
    listed = set(re.findall(r"--[a-z][a-z0-9-]*", help_of(script, *subcommand)))
    unknown = [word for word in arguments if word.startswith("--") and word not in listed]
    assert not unknown, f"{script} has no {unknown}"
    missing = [word for word in arguments if word.startswith("examples/") and not (ROOT / word).is_file()]
    assert not missing, f"the README names {missing}, which is not there"


def test_the_library_example_trains(tmp_path, monkeypatch):
    """The README's own lines, on a toy model in place of models/alum-base and a data set of 16 examples."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "AlumTrainer" in b]
    toy.tiny_model("classification", num_labels=2).save_pretrained(tmp_path / "models" / "alum-base")
    monkeypatch.chdir(tmp_path)
    two_classes = [{**example, "labels": example["labels"] % 2} for example in toy.examples("classification")]
    names = {"train_dataset": two_classes}
    exec(compile(block, "README.md", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step > 0 and trainer.method.name == "alum"
    assert trainer.statistics["alum_kl"] > 0


def test_make_targets_exist():
    targets = {command.split()[1] for command in COMMANDS if command.startswith("make ")} | set(
        re.findall(r"`make ([a-z-]+)", README)
    )
    assert {"demo", "test"} <= targets
    for target in targets:
        run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, f"make {target}: {run.stderr}"


def test_the_file_tour_names_files_that_exist():
    tour = [*re.findall(r"^\| `(.*?)` \|", README, flags=re.MULTILINE), "megatron_alum/ops/", "csrc/README.md"]
    missing = [path for path in tour if "`" not in path and not (ROOT / path).exists()]
    assert not missing
