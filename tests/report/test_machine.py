"""The columns that say where a measurement comes from."""

import os
import subprocess
from pathlib import Path

from megatron_alum.report import machine

ROOT = Path(__file__).parents[2]


def test_the_processor_has_a_name_and_cores():
    name, _, cores = machine.processor_name().rpartition(" (")
    assert name and cores == f"{os.cpu_count()} cores)"


def test_the_commit_is_that_of_the_checkout(monkeypatch):
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    expected = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    assert machine.current_commit() == (expected or "unknown")
    monkeypatch.setenv("PATH", "")
    assert machine.current_commit() == "unknown"


def test_an_installed_package_has_no_commit_of_the_repository_around_it(tmp_path, monkeypatch):
    """An environment often lies in a project's own folder: that project's commit says nothing of this code."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "x")):
        subprocess.run([*git, *words], check=True)
    installed = tmp_path / "site-packages" / "machine.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(machine, "__file__", str(installed))
    assert machine.current_commit() == "unknown"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    assert len(machine.current_commit()) >= 7
