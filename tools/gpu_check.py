r"""Everything that needs a GPU, in one command of under eight minutes on a bare machine: `make gpu-check PY=python3`.

    build      the extension with CUDA, in a temporary copy of the tree (nothing is installed or left behind)
    ops        tools/bench_ops.py --device cuda                                    -> benchmarks/results/<gpu>-ops.csv
    steps      benchmarks/bench_step.py, BERT-base at 512 in bfloat16, with stock -> benchmarks/results/<gpu>-steps.csv
    test       tests/ops with --device cuda
    sanitize   a few of them under compute-sanitizer's tools, or the reason why not
    promises   each figure that the project promises, asked and measured           -> benchmarks/results/<gpu>.csv

Needs nvcc and a python that has a CUDA build of torch, setuptools, numpy, packaging, pyyaml and psutil; no network, no
data. What that python lacks of pytest and its needs, and megatron-core itself, is taken from wheels in the folder .whl
of the project, which somebody with a network fills beforehand (here for Python 3.12):

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d .whl \
        megatron-core==0.16.1 pytest pluggy iniconfig pygments

A step that fails, or whose needs are missing, does not keep the others from running; the exit code is 1 if any did.
A step for which no time is left is skipped, and named at the end. Where the variable OUT names a folder, it gets a copy
of the tables.
"""

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ("csrc", "megatron_alum", "tests", "tools", "benchmarks", "setup.py", "README.md")
# Rows of one block, of a cluster of blocks, and tokens: what runs on the GPU, which test_simt.py runs on a CPU.
SANITIZED = (
    "(test_identical_logits_give_exactly_zero or test_padded_columns or test_wide_rows or test_tokens_outside_the_mask)"
    " and not simt and not reference"
)
SANITIZERS = ("memcheck", "racecheck", "synccheck")  # bounds, shared memory, barriers
# Our kernel alone, else torch's are instrumented, too; torch probes the driver with calls that may fail.
SANITIZER_FLAGS = ("--kernel-name", "kns=alum_kernel", "--report-api-errors", "no", "--error-exitcode", "9")
SECONDS_IN_ALL = 460
LEAST_SECONDS = 20  # with less than this left a step is not started
SHOWN = 6000  # characters of a step's output
OPS = ("--device", "cuda", "--rows", "8192", "--tokens", "65536", "--repeats", "20")
STEPS = "--model-size base --seq-length 512 --micro-batch-size 64 --bf16 --steps 10 --rounds 1".split()
ROWS_OF_STEPS = ("--only", "standard", "alum K=1")
ROW_KERNEL = "ours, one launch"  # a contestant of bench_ops.py
PEAK_TFLOPS = 989.0  # H100 and H200, dense bfloat16


@dataclass
class Check:
    """The copy of the tree, and how its steps went."""

    folder: Path
    label: str
    """the GPU's name as part of a file name"""
    began: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """for want of time"""

    def results(self, suffix: str = "") -> Path:
        """CSV file of this GPU in the project."""
        return ROOT / "benchmarks" / "results" / f"{self.label}{suffix}.csv"

    def environment(self, **more: str) -> dict[str, str]:
        """Of a step: modules from the copy and the wheels, the commit from the project."""
        paths = [str(self.folder), str(self.folder / "site"), os.environ.get("PYTHONPATH", "")]
        git = {"GIT_DIR": str(ROOT / ".git")} if (ROOT / ".git").exists() else {}
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **git, **more}

    def seconds_for(self, name: str, wanted: int) -> float | None:
        """How long a step may take that would like `wanted`; None, and a note, where the time is spent."""
        left = SECONDS_IN_ALL - (time.monotonic() - self.began)
        if left >= LEAST_SECONDS:
            return min(wanted, left)
        self.skipped.append(name)
        print(f"\n=== {name}: skipped, no time left", flush=True)
        return None

    def run(self, name: str, command: list[str], *, seconds: int, **environment: str) -> str | None:
        """Run one step, show its output and return it; None where it failed, took longer than `seconds` or had no
        time left."""
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
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output = (process.communicate()[0] or "") + f"\nstopped: it took longer than {limit:.0f} s"
        passed = process.returncode == 0
        print(output[-SHOWN:].rstrip() if passed else output.rstrip())
        print(f"=== {name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
        if passed:
            return output
        print(first_error(output), end="", flush=True)
        self.fail(name)
        return None

    def fail(self, name: str, why: str = "") -> None:
        """Note a failed step."""
        self.failed.append(name)
        if why:
            print(f"\n=== {name}: FAILED, {why}", flush=True)

    def has(self, module: str) -> bool:
        """Whether a step can import `module`, from this python or from a wheel."""
        return importlib.util.find_spec(module) is not None or (self.folder / "site" / module).is_dir()


def first_error(output: str) -> str:
    """Once more, where whoever sees the end alone will find it: what a compiler complained about first."""
    found = re.search(r"^.*(error:|FAILED:)", output, re.MULTILINE)
    return "" if found is None else f"=== from its first error on:\n{output[found.start() :][:SHOWN].rstrip()}\n"


def refusal() -> str | None:
    """Why this machine cannot run the check, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed for this python"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    if shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
        return "nvcc is not on PATH and CUDA_HOME is not set"
    return None


def copy_tree(folder: Path) -> None:
    """The files the check needs, without what was built for another python or machine, and without the sampler."""
    unwanted = shutil.ignore_patterns("*.so", "__pycache__", "data")
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source,
                folder / name,
                ignore=unwanted if name == "csrc" else shutil.ignore_patterns("*.so", "__pycache__"),
            )
        elif source.exists():
            shutil.copy2(source, folder / name)


def unpack_wheels(wheels: Path, site: Path) -> None:
    """Makes the carried wheels importable; a wheel is an archive of what lies in site-packages."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def build(check: Check, capability: str) -> bool:
    """The extension for this GPU alone. pyproject.toml comes after: an older setuptools refuses its metadata."""
    settings = {"USE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "MAX_JOBS": str(os.cpu_count())}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    built = check.run("build", command, seconds=240, **settings)
    shutil.copy2(ROOT / "pyproject.toml", check.folder)
    return built is not None


def measure_steps(check: Check) -> None:
    """Whole steps beside stock megatron-core."""
    if not check.has("megatron"):
        check.fail("steps", "megatron-core is missing; carry its wheel in .whl (see --help)")
        return
    output = ["--output", str(check.results("-steps"))]
    check.run("steps", [sys.executable, "-m", "benchmarks.bench_step", *STEPS, *ROWS_OF_STEPS, *output], seconds=180)


def test(check: Check) -> None:
    """The tests of the ops on the GPU, then a few of them under the sanitizer."""
    if not check.has("pytest"):
        check.fail("test", "pytest is missing; carry its wheels in .whl (see --help)")
        return
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops", "--device", "cuda"]
    check.run("test", [*tests, "-k", "not nvcc"], seconds=200)
    sanitize(check, tests)


def sanitize(check: Check, tests: list[str]) -> None:
    """The command `tests`, of a few of them, under each of the sanitizer's tools."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("\n=== sanitize: skipped, compute-sanitizer is not on PATH", flush=True)
        return
    limit = check.seconds_for("sanitize", 60)
    if limit is None:
        return
    if not answers([tool, sys.executable, "-c", _ONE_KERNEL], seconds=limit):
        print(f"\n=== sanitize: skipped, the sanitizer refuses this device or is not up in {limit:.0f} s", flush=True)
        return
    for kind in SANITIZERS:
        command = [tool, "--tool", kind, *SANITIZER_FLAGS, *tests, "-x", "-k", SANITIZED]
        check.run(f"sanitize, {kind}", command, seconds=90, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def answers(command: list[str], *, seconds: float) -> bool:
    """Whether a command succeeds in time."""
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return False


_ONE_KERNEL = "import torch; assert torch.ones(8, device='cuda').sum().item() == 8"


@dataclass(frozen=True)
class Promise:
    """One figure that the project promises for an H100 or H200."""

    what: str
    asked: float
    measured: float | None
    """None where its step has failed"""
    at_most: bool = False

    @property
    def met(self) -> str:
        """yes, no, or unknown."""
        if self.measured is None:
            return "unknown"
        return "yes" if (self.measured <= self.asked if self.at_most else self.measured >= self.asked) else "no"


def promises(ops: list[dict[str, str]], steps: list[dict[str, str]]) -> list[Promise]:
    """The figures from the rows of the two tables."""

    def op(name: str, contestant: str, column: str) -> float | None:
        wanted = [r for r in ops if r["op"].startswith(name) and r["contestant"].startswith(contestant)]
        return next((float(r[column]) for r in wanted if r["dtype"] == "bfloat16"), None)

    def step(name: str, column: str) -> float | None:
        found = (row[column] for row in steps if row["step"] == name)
        return next((float(value) for value in found if value), None)  # empty where stock or the standard step failed

    def inverse(value: float | None, scale: float = 1.0) -> float | None:
        return None if value is None else scale / value

    tflops = step("standard", "tflops")
    row_kernel = ("symmetric_kl", ROW_KERNEL)
    return [
        Promise("row kernel, share of copy bandwidth", 0.75, inverse(op(*row_kernel, "against_floor"))),
        Promise("row kernel, times faster than eager", 8.0, op(*row_kernel, "speedup")),
        Promise("token role, share of copy bandwidth", 0.80, inverse(op("perturb", "ours", "against_floor"))),
        Promise("standard step, share of 989 TFLOP/s", 0.30, None if tflops is None else tflops / PEAK_TFLOPS),
        Promise("standard step, times faster than stock", 1.3, inverse(step("standard", "ratio_to_stock"))),
        Promise("ALUM step over standard step", 2.75, step("alum K=1", "ratio_to_standard"), at_most=True),
    ]


def read_table(path: Path, *, since: float) -> list[dict[str, str]]:
    """Rows of a CSV file written after `since` (seconds of the epoch); none of an older run's."""
    if not path.is_file() or path.stat().st_mtime < since:
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def report(check: Check, found: list[Promise], machine: dict[str, str]) -> None:
    """Print the promises and write them to <gpu>.csv."""
    print()
    with check.results().open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["promise", "asked", "measured", "met", *machine])
        for promise in found:
            bound = f"{'<=' if promise.at_most else '>='} {promise.asked:g}"
            measured = "" if promise.measured is None else f"{promise.measured:.3g}"
            writer.writerow([promise.what, bound, measured, promise.met, *machine.values()])
            print(f"{promise.what:42}{bound:>10}{measured:>10}   {promise.met}")


def copy_tables(check: Check, *, since: float) -> None:
    """The tables of this run to the folder OUT, where there is one."""
    tables = [check.results(suffix) for suffix in ("-ops", "-steps", "")]
    for table in tables if os.path.isdir(os.environ.get("OUT", "")) else ():
        if read_table(table, since=since):
            shutil.copy2(table, os.environ["OUT"])


def main() -> int:
    """All steps; 0 when none failed."""
    if any(word in ("-h", "--help") for word in sys.argv[1:]):
        print(__doc__)
        return 0
    reason = refusal()
    if reason is not None:
        print(f"error: gpu-check must run on a machine with a GPU and nvcc, but {reason}.", file=sys.stderr)
        return 2
    import torch

    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    print(f"{name}, compute capability {major}.{minor}, torch {torch.__version__}, python {sys.version.split()[0]}")
    since = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        check = Check(Path(temporary), re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
        copy_tree(check.folder)
        unpack_wheels(ROOT / ".whl", check.folder / "site")
        if not build(check, f"{major}.{minor}"):
            return 1
        ops = [sys.executable, "tools/bench_ops.py", *OPS, "--output", str(check.results("-ops"))]
        check.run("ops", ops, seconds=120)
        measure_steps(check)
        test(check)
        tables = (read_table(check.results(suffix), since=since) for suffix in ("-ops", "-steps"))
        machine = {"device": name, "cuda": str(torch.version.cuda), "torch": torch.__version__}
        report(check, promises(*tables), machine)
    copy_tables(check, since=since)
    skipped = f"; no time left for: {', '.join(check.skipped)}" if check.skipped else ""
    print(f"\nin all {time.monotonic() - check.began:.0f} s; failed: {', '.join(check.failed) or 'nothing'}{skipped}")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
