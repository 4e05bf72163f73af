"""Finds and loads the compiled extension (megatron_alum._C) and chooses an implementation for a call.

The extension belongs to one minor version of torch. The version it was built with stands as text inside the file and is
read before loading, so that under another torch the reference is used and one line logged, and no symbol is ever
undefined. `impl="auto"` takes the kernel for the tensor's device if there is one for its dtype, else the reference, and
logs each reason once; `impl="cpu" | "cuda"` raises that reason. MEGATRON_ALUM_NO_EXTENSION=1 makes every call use the
reference.
"""

import importlib.util
import json
import logging
import mmap
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_alum.config.words import not_one_of

logger = logging.getLogger(__name__)
IMPLEMENTATIONS = ("auto", "cuda", "cpu", "reference")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REBUILD = "rebuild with `pip install --no-build-isolation -e .`"
_MARKER = re.compile(rb"megatron_alum_build:(\{[^}\0]*\})")


def extension_path() -> Path | None:
    """The compiled file beside the package, or None."""
    spec = importlib.util.find_spec("megatron_alum._C")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def read_build(path: Path) -> dict[str, Any] | None:
    """What the file was built with ({"torch": version, "cuda": version or None}), read without loading it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = _MARKER.search(content)
        return json.loads(found.group(1)) if found else None


_after_loading: list[Callable[[], None]] = []


@lru_cache(maxsize=1)
def load_extension() -> str | None:
    """Loads the extension once; None on success, else why there is none."""
    if os.environ.get("MEGATRON_ALUM_NO_EXTENSION") == "1":
        return "MEGATRON_ALUM_NO_EXTENSION=1"
    path = extension_path()
    if path is None:
        return f"megatron_alum._C is not built; {_REBUILD}"
    build = read_build(path)
    built_with = "an unknown torch" if build is None else f"torch {build['torch']}"
    if build is None or _minor(build["torch"]) != _minor(torch.__version__):
        return f"{path.name} was built with {built_with}, but torch is {torch.__version__}; {_REBUILD}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded ({error}); {_REBUILD}"
    for action in _after_loading:
        action()
    return None


def after_loading(action: Callable[[], None]) -> None:
    """Have `action` run once the extension is loaded: the module that registers derivatives imports this one."""
    _after_loading.append(action)


def select(impl: str, tensor: Tensor, *more: Tensor | torch.dtype | None) -> str:
    """Name of the implementation that serves `tensor` and the dtypes of `more`: "cuda", "cpu" or "reference"."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(not_one_of("`impl`", impl, IMPLEMENTATIONS))
    if impl == "reference":
        return impl
    device = tensor.device.type
    reason = _refusal(tensor.device, tensor.dtype)
    for other in more:
        if reason is None and other is not None:
            reason = _refusal(tensor.device, other.dtype if isinstance(other, Tensor) else other)
    if impl != "auto" and device != impl:
        reason = f"the tensors are on {device}"
    if reason is None:
        return device
    if impl != "auto":
        raise ValueError(f"`impl` must be one that can run here, but is {impl!r} instead: {reason}. Use impl='auto'.")
    if not torch.compiler.is_compiling():  # writing a log would break the graph
        _log_once(f"fused ops fall back to the torch reference: {reason}")
    return "reference"


def build_info() -> dict[str, Any]:
    """State of the extension.

    Keys: `built` (usable here), `cuda` (CUDA version of its kernels or None), `architectures` (those it was built for,
    as in TORCH_CUDA_ARCH_LIST, or None), `torch` (version it was built with or None), `instruction_set` (what the CPU
    kernels use now: "avx512", "avx2", "portable" or None), `reason` (why not, or None).
    """
    reason = load_extension()
    path = extension_path()
    build = (read_build(path) if path is not None else None) or {}
    return {
        "built": reason is None,
        "cuda": build.get("cuda"),
        "architectures": build.get("architectures"),
        "torch": build.get("torch"),
        "instruction_set": torch.ops.megatron_alum.instruction_set() if reason is None else None,
        "reason": reason,
    }


@torch.compiler.assume_constant_result
def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel serves this device and dtype, or None; a constant to torch.compile."""
    return _cached_refusal(device, dtype)


@lru_cache(maxsize=64)
def _cached_refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"there is no kernel for device {device.type}"
    if dtype not in KERNEL_DTYPES:
        return f"there is no kernel for {dtype} (only {', '.join(str(x) for x in KERNEL_DTYPES)})"
    reason = load_extension()
    if reason is not None or device.type == "cpu":
        return reason
    info = build_info()
    if info["cuda"] is None:
        return f"the extension was built without CUDA; {_REBUILD} where nvcc and a CUDA torch are"
    capability = torch.cuda.get_device_capability(device)  # a machine may hold GPUs of several kinds
    if not runs_on(info["architectures"], capability):
        wanted = ".".join(map(str, capability))
        return f"the extension was built for {info['architectures']}, not for {wanted}; {_REBUILD}"
    return None


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a build for `architectures` (as in TORCH_CUDA_ARCH_LIST) has code for a device of `capability`.

    Machine code runs on later minor versions of its major one, intermediate code (+PTX) on everything later. Names
    ("Hopper") are taken on trust.
    """
    for entry in architectures.replace(";", " ").split():
        found = re.fullmatch(r"(\d+)\.(\d+)a?(\+PTX)?", entry)
        if found is None:
            return True
        version = int(found[1]), int(found[2])
        if version <= capability and (version[0] == capability[0] or found[3]):
            return True
    return False


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    logger.warning(message)
