"""Every command of the README exists: its script, its flags as the script's own --help lists them, its make target."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

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
