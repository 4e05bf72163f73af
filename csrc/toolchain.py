"""What setup.py can compile with on this machine: compiler, headers and CUDA toolkit."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any


def lacking() -> list[str]:
    """What a compilation needs and this machine lacks, each with its remedy."""
    compiler, include = os.environ.get("CXX", "c++").split()[0], Path(sysconfig.get_paths()["include"])
    found = []
    if not shutil.which(compiler):
        found.append(f"no C++ compiler was found ({compiler} is not on PATH; install g++ or set CXX)")
    if not (include / "Python.h").is_file():
        found.append(f"{include} has no Python.h (install Python's development headers)")
    return found


def find_toolkit() -> None:
    """Sets CUDA_HOME where torch would guess wrong: it takes the folder above nvcc, which may be a wrapper."""
    nvcc = shutil.which("nvcc")
    guesses = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for home in [*guesses, Path("/usr/local/cuda")]:
        if (home / "include" / "cuda_runtime.h").is_file():
            os.environ.setdefault("CUDA_HOME", str(home))


def nvcc_release(home: str | None) -> tuple[int, int] | None:
    """(major, minor) of the nvcc that will compile, from PATH or the toolkit at `home`; None without one."""
    nvcc = shutil.which("nvcc") or (home and shutil.which("nvcc", path=str(Path(home) / "bin")))
    if not nvcc:
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def cuda_refusal(torch: Any, home: str | None) -> str | None:
    """Why CUDA cannot be built here for this torch (None: there is none), or None when it can."""
    if torch is None or torch.version.cuda is None:
        return "this torch is not a CUDA build"
    release = nvcc_release(home)
    if release is None:
        return "nvcc was not found; put it on PATH or set CUDA_HOME"
    if release[0] != int(torch.version.cuda.split(".")[0]):
        return f"nvcc must be of CUDA {torch.version.cuda}, but is of {release[0]}.{release[1]} instead"
    return None
