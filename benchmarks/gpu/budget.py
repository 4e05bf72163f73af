"""Runs the steps of gpu_check.py one after the other within a time budget, and records how they ended.

A step ends in one of four ways: passed; failed; not finished (it exceeded its time: a slow or hung step proves nothing
either way); skipped for lack of time. Its output is shown at once and in full.
"""

import importlib.util
import os
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS_IN_ALL = 460
LEAST_SECONDS = 20  # with less than this left a step is not started
SHOWN = 6000  # characters of a step's output


@dataclass
class Check:
    """The copy of the tree, and how its steps went."""

    folder: Path
    label: str
    """the GPU's name as part of a file name"""
    began: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    """exceeded their time"""
    skipped: list[str] = field(default_factory=list)
    """for lack of time"""

    def results(self, suffix: str = "") -> Path:
        """This GPU's CSV file in the project."""
        return ROOT / "benchmarks" / "results" / f"{self.label}{suffix}.csv"

    def environment(self, **more: str) -> dict[str, str]:
        """Of a step: modules and programs from the copy and the wheels, the commit from the project."""
        paths = [str(self.folder), str(self.folder / "site"), os.environ.get("PYTHONPATH", "")]
        programs = os.pathsep.join([str(self.folder / "site" / "bin"), os.environ.get("PATH", "")])
        git = {"GIT_DIR": str(ROOT / ".git")} if (ROOT / ".git").exists() else {}
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PATH": programs, **git, **more}

    def seconds_for(self, name: str, wanted: int) -> float | None:
        """How long a step that needs `wanted` seconds may take; None, and a note, if no time is left."""
        left = SECONDS_IN_ALL - (time.monotonic() - self.began)
        if left >= LEAST_SECONDS:
            return min(wanted, left)
        self.skipped.append(name)
        print(f"\n=== {name}: skipped, no time left", flush=True)
        return None

    def run(self, name: str, command: list[str], *, seconds: int, **environment: str) -> str | None:
        """Run one step, show its output and return it; None unless it passed."""
        limit = self.seconds_for(name, seconds)
        if limit is None:
            return None
        print(f"\n=== {name}: {' '.join(command)}", flush=True)
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        verdict = "passed"
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output = (process.communicate()[0] or "") + f"\nstopped: it took longer than {limit:.0f} s"
            verdict = "NOT FINISHED"
        if verdict == "passed" and process.returncode != 0:
            verdict = "FAILED"
        print(output[-SHOWN:].rstrip() if verdict == "passed" else output.rstrip())
        print(f"=== {name}: {verdict} in {time.monotonic() - start:.0f} s", flush=True)
        if verdict == "passed":
            return output
        print(first_error(output), end="", flush=True)
        (self.failed if verdict == "FAILED" else self.unfinished).append(name)
        return None

    def fail(self, name: str, why: str) -> None:
        """Record a step that cannot be run."""
        self.failed.append(name)
        print(f"\n=== {name}: FAILED, {why}", flush=True)

    def has(self, module: str) -> bool:
        """Whether a step can import `module`, from this python or from a wheel."""
        return importlib.util.find_spec(module) is not None or (self.folder / "site" / module).is_dir()

    def exit_code(self, unmet: int, unknown: int) -> int:
        """0: everything passed; 1: a step failed or a promise is not kept; 3: nothing failed, but not everything
        ran."""
        if self.failed or unmet:
            return 1
        return 3 if self.unfinished or self.skipped or unknown else 0


def first_error(output: str) -> str:
    """The first error of a compiler, repeated at the end for readers who only see the end."""
    found = re.search(r"^.*(error:|FAILED:)", output, re.MULTILINE)
    return "" if found is None else f"=== from its first error on:\n{output[found.start() :][:SHOWN].rstrip()}\n"


def unpack_wheels(wheels: Path, site: Path) -> None:
    """Makes the wheels of the copy importable; a wheel is an archive of files for site-packages. Its programs (such as
    ninja) go to `site`/bin."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for program in site.glob("*.data/scripts/*"):
        (site / "bin").mkdir(exist_ok=True)
        program.rename(site / "bin" / program.name).chmod(0o755)


def answers(command: list[str], *, seconds: float) -> bool | None:
    """Whether a command succeeds; None if it does not end in time."""
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return None


def python(*words: str) -> list[str]:
    """A command run by this Python."""
    return [sys.executable, *words]
