r"""Everything that needs a GPU, in one command of under eight minutes on a bare machine: `make gpu-check PY=python3`.

    build       the extension with CUDA, in a temporary copy of the tree (nothing is installed or left behind)
    test        tests/ops with --device cuda
    steps       BERT-base at 512 in bfloat16 on real lengths, beside padded stock megatron-core: samples and tokens
                per second, share of the peak, memory           -> benchmarks/results/<gpu>-steps.csv
    training    30 iterations through both phases with the distributed optimizer, saved in the background, killed,
                resumed, exported                                                   (benchmarks/gpu/real_run.py)
    sync        a training step never waits for the GPU                               (benchmarks/gpu/probes.py)
    graphs      the ops in a CUDA graph
    attention   its backends against each other, with dropout by statistics
    compile     a compiled layer is one graph
    ops         python -m benchmarks.bench_ops --device cuda          -> benchmarks/results/<gpu>-ops.csv
    shared      two ranks on the one GPU, in four layouts, against one                (benchmarks/gpu/shared_gpu.py)
    sanitize    a few tests under compute-sanitizer's tools, or the reason why not
    promises    each figure that the project promises           -> benchmarks/results/<gpu>.csv

Most important first: steps for which no time is left are skipped and named at the end. Figures are written as they
come. Needs nvcc and a Python with a CUDA build of torch, setuptools, numpy, packaging, pyyaml and psutil; no network.
What that Python lacks is taken from wheels in the folder .whl of the project, to be filled beforehand on a machine with
a network (here for Python 3.12); without ninja the build takes minutes longer:

    pip download --only-binary=:all: --no-deps --python-version 3.12 --platform manylinux_2_28_x86_64 -d .whl \
        megatron-core==0.16.1 pytest pluggy iniconfig pygments hypothesis sortedcontainers ninja tokenizers \
        transformers safetensors huggingface-hub regex tqdm filelock requests

Real text are the shards that `make bench-text` leaves in build/bench, or those of --data PREFIX; without any, steps are
measured on full rows of random tokens and there are no training runs.

Exit code: 0 if everything passed; 1 if a step failed or a promise is not kept; 3 if nothing failed, but a step was not
finished or skipped. If the variable OUT names a folder, it gets a copy of the tables.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.budget import ROOT, Check, answers, python, unpack_wheels
from benchmarks.gpu.promises import Promise, promises, read_table, report
from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser

CARRIED = ("csrc", "megatron_alum", "tests", "tools", "benchmarks", "setup.py", "README.md", "pretrain_bert_alum.py")
# Rows of one block, of a cluster of blocks, and tokens: on the GPU itself, what test_simt.py runs on a CPU.
SANITIZED = (
    "(test_identical_logits_give_exactly_zero or test_padded_columns or test_wide_rows or test_tokens_outside_the_mask)"
    " and not simt and not reference"
)
SANITIZERS = ("memcheck", "racecheck", "synccheck")  # bounds, shared memory, barriers
# Only our kernel, else torch's are instrumented, too; torch probes the driver with calls that may fail.
SANITIZER_FLAGS = ("--kernel-name", "kns=alum_kernel", "--report-api-errors", "no", "--error-exitcode", "9")
TESTS = "-m pytest -q -p no:cacheprovider tests/ops --device cuda".split()
OPS = ("--device", "cuda", "--rows", "8192", "--tokens", "65536", "--repeats", "20")
STEPS = "--model-size base --seq-length 512 --micro-batch-size 64 --bf16 --steps 10 --rounds 1".split()
ROWS_OF_STEPS = ("--only", "standard", "alum K=1", "alum late layer")
TRAINING = "--model-size mini --seq-length 128 --micro-batch-size 16 --global-batch-size 32".split()
WHEELS = {
    "steps": ("megatron",),
    "training": ("megatron", "tokenizers", "transformers"),
    "shared": ("megatron", "tokenizers"),
    "test": ("pytest", "hypothesis"),
}
_ONE_KERNEL = "import torch; assert torch.ones(8, device='cuda').sum().item() == 8"


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
    """The files that the check needs, without anything built for another Python or machine, and without the sampler."""
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


def build(check: Check, capability: str) -> bool:
    """The extension for this GPU only. pyproject.toml is copied later: an older setuptools refuses its metadata."""
    settings = {"USE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "MAX_JOBS": str(os.cpu_count())}
    has_ninja = shutil.which("ninja", path=check.environment()["PATH"]) is not None
    if not has_ninja:
        print("ninja is missing (carry its wheel in .whl): one file is compiled after the other", flush=True)
    built = check.run(
        "build", python("setup.py", "build_ext", "--inplace"), seconds=240 if has_ninja else 420, **settings
    )
    shutil.copy2(ROOT / "pyproject.toml", check.folder)
    return built is not None


def possible(check: Check, name: str) -> bool:
    """Whether the modules of a step are available; a step without them has failed."""
    missing = [module for module in WHEELS.get(name, ()) if not check.has(module)]
    if missing:
        check.fail(name, f"{' and '.join(missing)} missing; carry the wheels in .whl (see --help)")
    return not missing


def parts(check: Check, data: str | None) -> list[tuple[str, list[str], int]]:
    """(name, command, seconds) of each step between the build and the sanitizer, most important first."""
    real = ["--data", data] if data else []
    output = ["--output", str(check.results("-steps"))]
    names = ("sync", "graphs", "attention", "compile")
    probes = [(name, python("-m", "benchmarks.gpu.probes", name), 40) for name in names]
    runs = [*real, "--folder", str(check.folder / "runs"), *TRAINING]
    training = ("training", python("-m", "benchmarks.gpu.real_run", *runs, "--bf16"), 120)
    shared = ("shared", python("-m", "benchmarks.gpu.shared_gpu", *runs), 150)
    ops = python("-m", "benchmarks.bench_ops", *OPS, "--output", str(check.results("-ops")))
    return [
        ("test", python(*TESTS, "-k", "not nvcc"), 150),
        ("steps", python("-m", "benchmarks.bench_step", *STEPS, *real, *ROWS_OF_STEPS, *output), 150),
        *([training] if data else []),
        *probes,
        ("ops", ops, 90),
        *([shared] if data else []),
    ]


def sanitize(check: Check, tests: list[str]) -> None:
    """A few of the tests, under each of the sanitizer's tools."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        check.skipped.append("sanitize")
        print("\n=== sanitize: skipped, compute-sanitizer is not on PATH", flush=True)
        return
    limit = check.seconds_for("sanitize", 60)
    if limit is None:
        return
    answer = answers([tool, sys.executable, "-c", _ONE_KERNEL], seconds=limit)
    if not answer:
        check.unfinished.append("sanitize")
        why = f"the sanitizer did not start in {limit:.0f} s" if answer is None else "the sanitizer refuses this device"
        print(f"\n=== sanitize: NOT FINISHED, {why}", flush=True)
        return
    for kind in SANITIZERS:
        command = [tool, "--tool", kind, *SANITIZER_FLAGS, *tests, "-x", "-k", SANITIZED]
        check.run(f"sanitize, {kind}", command, seconds=90, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def measured(check: Check, since: float, machine: dict[str, str]) -> list[Promise]:
    """The promises checked against the tables so far, written and shown."""
    found = promises(*(read_table(check.results(suffix), since=since) for suffix in ("-ops", "-steps")))
    report(check.results(), found, machine)
    copy_tables(check, since=since)
    return found


def copy_tables(check: Check, *, since: float) -> None:
    """Copy the tables of this run to the folder OUT, if it is set."""
    tables = [check.results(suffix) for suffix in ("-ops", "-steps", "")]
    for table in tables if os.path.isdir(os.environ.get("OUT", "")) else ():
        if read_table(table, since=since):
            shutil.copy2(table, os.environ["OUT"])


def run_all(check: Check, capability: str, machine: dict[str, str], data: str | None) -> int:
    """All steps; the exit code."""
    since = time.time()
    copy_tree(check.folder)
    unpack_wheels(ROOT / ".whl", check.folder / "site")
    if data is None:
        check.skipped += ["training", "shared"]
        print("\n=== training, shared: skipped, no shards (see --help); steps are measured on full rows", flush=True)
    if not build(check, capability):
        return check.exit_code(unmet=0, unknown=1)
    for name, command, seconds in parts(check, data):
        if possible(check, name):
            check.run(name, command, seconds=seconds)
        if name in ("steps", "ops"):
            measured(check, since, machine)
    sanitize(check, python(*TESTS))
    met = [promise.met for promise in measured(check, since, machine)]
    for verdict in ("failed", "unfinished", "skipped"):
        print(f"{verdict}: {', '.join(getattr(check, verdict)) or 'nothing'}")
    print(f"promises not kept: {met.count('no')}, not measured: {met.count('unknown')}")
    print(f"in all {time.monotonic() - check.began:.0f} s")
    return check.exit_code(unmet=met.count("no"), unknown=met.count("unknown"))


def main(words: list[str] | None = None) -> int:
    """The command line above."""
    parser = Parser(description=__doc__)
    shards = ROOT / "build" / "bench" / "wiki"
    default = str(shards) if shards.with_suffix(".idx").is_file() else None
    parser.add_argument("--data", default=default, help="prefix of preprocessed shards (default: build/bench/wiki)")
    arguments = parser.parse_args(words)
    reason = refusal()
    if reason is not None:
        print(f"error: gpu-check must run on a machine with a GPU and nvcc, but {reason}.", file=sys.stderr)
        return 2
    import torch

    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    print(f"{name}, compute capability {major}.{minor}, torch {torch.__version__}, python {sys.version.split()[0]}")
    machine = {"device": name, "cuda": str(torch.version.cuda), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as temporary:
        check = Check(Path(temporary), re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
        return run_all(check, f"{major}.{minor}", machine, arguments.data)


if __name__ == "__main__":
    main_guard(lambda: sys.exit(main()))
