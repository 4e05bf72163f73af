"""No behaviour without a test: each fault of faults.toml, put into a copy of the project, is caught by its test there.

Every run checks that the faults still fit the code; `make mutations` tries them and stores the outcomes in
tests/slow_results.csv. The CUDA kernels have their own (tests/ops/test_simt.py).
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = tomllib.loads((ROOT / "tests" / "mutations" / "faults.toml").read_text(encoding="utf-8"))["fault"]
COPIED = ("megatron_alum", "tools", "tests", "benchmarks", "examples", "csrc/data", "csrc/common")
FILES = ("csrc/toolchain.py", "pretrain_bert_alum.py", "setup.py", "pyproject.toml", "README.md")
FAILED = 1
"""pytest's status when tests ran and some failed; other statuses mean an interrupted or wrong call"""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_fits_the_code(fault):
    assert (ROOT / fault["file"]).read_text(encoding="utf-8").count(fault["before"]) == 1
    path, _, name = fault["test"].partition("::")
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8") if name else (ROOT / path).is_file()


def test_every_package_has_a_fault():
    packages = {path.parent.name for path in (ROOT / "megatron_alum").glob("*/__init__.py")}
    assert packages == {parts[1] for fault in FAULTS if (parts := fault["file"].split("/"))[0] == "megatron_alum"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_is_noticed(fault, tmp_path):
    copy_project(tmp_path)
    path = tmp_path / fault["file"]
    path.write_text(path.read_text(encoding="utf-8").replace(fault["before"], fault["after"]), encoding="utf-8")
    if path.suffix == ".cpp":
        build = run(tmp_path, "setup.py", "build_ext", "--inplace")
        assert build.returncode == 0, build.stderr[-3000:]
    done = run_tests(tmp_path, "-x", fault["test"], *chosen(fault))
    assert done.returncode == FAILED, done.stdout[-3000:] + done.stderr[-3000:]
    assert "failed" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_without_a_fault_a_copy_passes(tmp_path):
    """Otherwise a failure would not be the fault's."""
    copy_project(tmp_path)
    whole = sorted({fault["test"] for fault in FAULTS if not chosen(fault)})
    for words in (whole, *([fault["test"], *chosen(fault)] for fault in FAULTS if chosen(fault))):
        done = run_tests(tmp_path, *words)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def copy_project(folder):
    """What the tests of FAULTS need, with the extensions as they are built here."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


def chosen(fault):
    """pytest's words that leave only some parameters of the fault's test."""
    return ["-k", fault["only"]] if "only" in fault else []


def run_tests(folder, *words):
    """pytest in the copy."""
    return run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words)


def run(folder, *words):
    """Python in the copy, which finds the copy's packages first."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
