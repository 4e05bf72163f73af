"""Builds the two native modules next to the Python package; everything else about the project stands in pyproject.toml.

megatron_alum._data   csrc/data/*.cpp with pybind11; needs no torch.
megatron_alum._C      csrc/library.cpp, csrc/ops/; needs the torch it will run with (--no-build-isolation). CPU always;
                      CUDA too when this torch is a CUDA build and nvcc of the same major version is found.
USE_CUDA=0 leaves CUDA out, USE_CUDA=1 makes its absence an error. TORCH_CUDA_ARCH_LIST overrides the architectures.
Both are compiled with ninja where it is installed (`python setup.py build_ext --inplace` recompiles what changed only).
A folder without sources is skipped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"
OLDER_ARCHITECTURES = "8.0;9.0+PTX"  # of an nvcc before 12.8, which does not know sm_100
# Contraction off: the noise must have the same bits in every build. Where a fused multiply-add is wanted it is written
# out; the CUDA code rounds step by step with intrinsics in the noise.
CXX_FLAGS = [
    *("-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unknown-pragmas", "-Wno-psabi"),
    "-ffp-contract=off",
    "-fno-math-errno",  # sqrt as an instruction, also in vectors
    "-fvisibility=hidden",
]
NVCC_FLAGS = ["-O3", "-std=c++17", "-lineinfo"]


def find_toolkit() -> None:
    """Sets CUDA_HOME where torch would guess wrong: it takes the folder above nvcc, which may be a wrapper."""
    nvcc = shutil.which("nvcc")
    guesses = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for home in [*guesses, Path("/usr/local/cuda")]:
        if (home / "include" / "cuda_runtime.h").is_file():
            os.environ.setdefault("CUDA_HOME", str(home))


find_toolkit()  # before the import below, which looks for it
try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    torch = None


def sources(pattern: str) -> list[str]:
    """Files below csrc matching `pattern`, relative to the project and sorted, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def nvcc_release() -> tuple[int, int] | None:
    """(major, minor) of the nvcc that will compile; None without one."""
    home = cpp_extension.CUDA_HOME
    nvcc = shutil.which("nvcc") or (home and shutil.which("nvcc", path=str(Path(home) / "bin")))
    if not nvcc:
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def cuda_refusal() -> str | None:
    """Why CUDA cannot be built here, or None when it can."""
    if torch is None or torch.version.cuda is None:
        return "this torch is not a CUDA build"
    release = nvcc_release()
    if release is None:
        return "nvcc was not found; put it on PATH or set CUDA_HOME"
    if release[0] != int(torch.version.cuda.split(".")[0]):
        return f"nvcc must be of CUDA {torch.version.cuda}, but is of {release[0]}.{release[1]} instead"
    return None


def with_cuda() -> bool:
    """Applies USE_CUDA; says on stderr why CUDA is left out."""
    wish = os.environ.get("USE_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"error: `USE_CUDA` must be 0 or 1, but is {wish!r} instead.")
    reason = "USE_CUDA=0" if wish == "0" else cuda_refusal()
    if reason and wish == "1":
        sys.exit(f"error: USE_CUDA=1, but {reason}.")
    if reason:
        print(f"megatron_alum._C: CPU only ({reason})", file=sys.stderr)
    return reason is None


def ops_extension() -> Extension | None:
    """megatron_alum._C, or None without torch or without sources."""
    files = sources("library.cpp") + sources("ops/*.cpp") + sources("ops/cpu/*.cpp")
    if torch is None or not files:
        return None
    cuda = with_cuda()
    # Kept as text inside the binary: Python reads it before loading, since another torch would be an undefined symbol.
    info = {"torch": torch.__version__, "cuda": None}
    if cuda:
        known = CUDA_ARCHITECTURES if (nvcc_release() or (0, 0)) >= (12, 8) else OLDER_ARCHITECTURES
        architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", known)
        info |= {"cuda": torch.version.cuda, "architectures": architectures}
    # Not among define_macros: nvcc would split the text at its commas.
    marker = f"-DMEGATRON_ALUM_BUILD={json.dumps(json.dumps(info))}"
    # -fopenmp when compiling only: at link time it would add a second OpenMP runtime beside the one torch brings.
    compile_args = {"cxx": [*CXX_FLAGS, "-fopenmp", marker], "nvcc": NVCC_FLAGS}
    include = [str(ROOT / "csrc")]
    if not cuda:
        return cpp_extension.CppExtension(
            "megatron_alum._C", files, include_dirs=include, extra_compile_args=compile_args["cxx"]
        )
    files += sources("ops/cuda/*.cpp") + sources("ops/cuda/*.cu")
    macros: list[tuple[str, str | None]] = [("MEGATRON_ALUM_CUDA", "1")]
    return cpp_extension.CUDAExtension(
        "megatron_alum._C", files, include_dirs=include, define_macros=macros, extra_compile_args=compile_args
    )


def data_extension() -> Extension | None:
    """megatron_alum._data, or None without sources."""
    files = sources("data/*.cpp")
    if not files:
        return None
    import pybind11

    include = [str(ROOT / "csrc"), pybind11.get_include()]
    flags = [*CXX_FLAGS, "-std=c++17", "-pthread"]
    return Extension("megatron_alum._data", files, include_dirs=include, extra_compile_args=flags, language="c++")


def headers_of(extension: Extension) -> list[str]:
    """Headers setuptools should watch: without ninja a changed header must rebuild the whole module."""
    if extension.name.endswith("_data"):
        return sources("data/**/*.h") + sources("common/p*.h")  # philox.h and the portability.h that it includes
    return sources("**/*.h") + sources("**/*.cuh")


def main() -> None:
    """Collects the extensions that can be built here and hands them to setuptools."""
    extensions = [extension for extension in (data_extension(), ops_extension()) if extension is not None]
    for extension in extensions:
        extension.depends = headers_of(extension)
    command = build_ext if torch is None else cpp_extension.BuildExtension.with_options(no_python_abi_suffix=False)
    setup(ext_modules=extensions, cmdclass={"build_ext": command})


main()
