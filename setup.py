"""Builds the two native modules next to the Python package; everything else about the project stands in pyproject.toml.

megatron_alum._data   csrc/data/*.cpp with pybind11; needs no torch.
megatron_alum._C      csrc/library.cpp, csrc/ops/; needs the torch it will run with (--no-build-isolation). CPU always;
                      CUDA too when this torch is a CUDA build and nvcc of the same major version is found.
USE_CUDA=0 leaves CUDA out, USE_CUDA=1 makes its absence an error. TORCH_CUDA_ARCH_LIST overrides the architectures.
Both are compiled with ninja where it is installed (`python setup.py build_ext --inplace` recompiles what changed only).
MEGATRON_ALUM_NO_EXTENSIONS=1 builds neither: the references in torch and Python do the same, many times slower.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))  # a build in isolation has no other way to it
from toolchain import cuda_refusal, find_toolkit, lacking, nvcc_release

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


find_toolkit()  # before the import below, which looks for it
try:
    import torch
    from torch.utils import cpp_extension

    CUDA_HOME: str | None = cpp_extension.CUDA_HOME
except ImportError:
    torch = CUDA_HOME = None


def sources(pattern: str) -> list[str]:
    """Files below csrc matching `pattern`, relative to the project and sorted, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def with_cuda() -> bool:
    """Applies USE_CUDA; says on stderr why CUDA is left out."""
    wish = os.environ.get("USE_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"error: `USE_CUDA` must be 0 or 1, but is {wish!r} instead.")
    reason = "USE_CUDA=0" if wish == "0" else cuda_refusal(torch, CUDA_HOME)
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
        known = CUDA_ARCHITECTURES if (nvcc_release(CUDA_HOME) or (0, 0)) >= (12, 8) else OLDER_ARCHITECTURES
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


class Build(build_ext if torch is None else cpp_extension.BuildExtension):  # type: ignore[misc]
    """The compilation, whose failure ends in a sentence that says what to do."""

    def build_extensions(self) -> None:
        """Compile; exits with the sentence, after what the compiler itself printed."""
        missing = lacking()
        try:
            if missing:
                raise RuntimeError
            super().build_extensions()
        except Exception as error:  # of the compiler, of ninja, of torch's checks: there is no common class
            reason = "; ".join(missing) or f"{' '.join(str(error).split())[:300]} (the compiler's output is above)"
            advice = "" if shutil.which("ninja") else " `pip install ninja` compiles in parallel."
            sys.exit(
                f"error: the extensions could not be compiled: {reason}.{advice} MEGATRON_ALUM_NO_EXTENSIONS=1 in the "
                "environment installs without them: the references in torch and Python do the same, many times slower."
            )


def headers_of(extension: Extension) -> list[str]:
    """Headers setuptools should watch: without ninja a changed header must rebuild the whole module."""
    if extension.name.endswith("_data"):
        return sources("data/**/*.h") + sources("common/p*.h")  # philox.h and the portability.h that it includes
    return sources("**/*.h") + sources("**/*.cuh")


def main() -> None:
    """Collects the extensions that can be built here and hands them to setuptools."""
    wish = os.environ.get("MEGATRON_ALUM_NO_EXTENSIONS", "0")
    if wish not in ("0", "1"):
        sys.exit(f"error: `MEGATRON_ALUM_NO_EXTENSIONS` must be 0 or 1, but is {wish!r} instead.")
    makers = () if wish == "1" else (data_extension, ops_extension)
    extensions = [extension for make in makers if (extension := make()) is not None]
    for extension in extensions:
        extension.depends = headers_of(extension)
    setup(ext_modules=extensions, cmdclass={"build_ext": Build})


main()
