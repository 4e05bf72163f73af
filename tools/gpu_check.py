"""Everything that needs a GPU, in one command of under eight minutes on a bare machine: `make gpu-check PY=python3`.

    build      the extension with CUDA, in a copy of the tree in a temporary folder (nothing is installed, nothing
    left behind) test       tests/ops with --device cuda sanitize   a few of them under compute-sanitizer (memcheck),
    or the reason why not bench      tools/bench_ops.py --device cuda, with the GPU's table, into
    benchmarks/results/<gpu>.csv
Needs a CUDA build of torch, nvcc, pytest, pybind11 and setuptools; no megatron-core, no network, no shared data. A
step that fails does not keep the others from running; the exit code is 1 if any did.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ("csrc", "megatron_alum", "tests", "tools", "setup.py", "pyproject.toml", "README.md")
SANITIZED = "test_identical_logits_give_exactly_zero or test_padded_columns or test_tokens_outside_the_mask"


def run(name: str, command: list[str], *, folder: Path, seconds: int, **environment: str) -> bool:
    """Runs one step with its output shown; prints how it went."""
    print(f"\n=== {name}: {' '.join(command)}", flush=True)
    start = time.time()
    try:
        code = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        code = -1
        print(f"{name} took longer than {seconds} s", flush=True)
    print(f"=== {name}: {'passed' if code == 0 else f'FAILED ({code})'} in {time.time() - start:.0f} s", flush=True)
    return code == 0


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
    """The files the check needs, without what was built for another python or machine."""
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        elif source.exists():
            shutil.copy2(source, folder / name)


def sanitize(folder: Path) -> bool:
    """compute-sanitizer over a few tests; a device it refuses is a printed reason, not a failure."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("\n=== sanitize: skipped, compute-sanitizer is not on PATH", flush=True)
        return True
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops", "--device", "cuda"]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", *tests, "-k", f"cuda and ({SANITIZED})"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired:
        print("\n=== sanitize: skipped, it took longer than 150 s here", flush=True)
        return True
    report = done.stdout + done.stderr
    print(f"\n=== sanitize\n{report[-2000:]}", flush=True)
    if "Device not supported" in report:
        print("=== sanitize: skipped, the sanitizer refuses this device", flush=True)
        return True
    return done.returncode == 0


def main() -> int:
    """All steps; 0 when none failed."""
    reason = refusal()
    if reason is not None:
        print(f"error: gpu-check must run on a machine with a GPU and nvcc, but {reason}.", file=sys.stderr)
        return 2
    import torch

    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    print(f"{name}, compute capability {major}.{minor}, torch {torch.__version__}, python {sys.version.split()[0]}")
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    python = sys.executable
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_tree(folder)
        build = {"USE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "MAX_JOBS": str(os.cpu_count())}
        command = [python, "setup.py", "build_ext", "--inplace"]
        if not run("build", command, folder=folder, seconds=240, PYTHONPATH=str(folder), **build):
            return 1
        here = {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops", "--device", "cuda"]
        passed = [run("test", tests, folder=folder, seconds=180, **here)]
        passed.append(sanitize(folder))
        results = ROOT / "benchmarks" / "results" / f"{label}.csv"
        bench = [
            python,
            "tools/bench_ops.py",
            "--device",
            "cuda",
            "--rows",
            "8192",
            "--repeats",
            "20",
            "--output",
            str(results),
        ]
        passed.append(run("bench", bench, folder=folder, seconds=120, **here))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
