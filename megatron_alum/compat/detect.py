"""What this machine has: CUDA, NVIDIA's apex (or the unrelated package of that name), versions.

Nothing found here is required. Looks at files and package metadata without importing an accelerator library, since some
fail or print on import. `megatron-alum doctor` prints the report with advice.
"""

import functools
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_alum.compat.versions import SUPPORTED, is_supported, megatron_version

_APEX_SOURCE = "https://github.com/NVIDIA/apex"
_APEX_BUILD = f"APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation git+{_APEX_SOURCE}.git"
_APEX_EXTENSIONS = ("amp_C", "fused_layer_norm_cuda")
"""extensions that distinguish a built apex from one without kernels; only built if the variables above are set"""


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked for, what was found, and what to do about it ("" when nothing)."""

    name: str
    found: str
    advice: str = ""
    required: bool = False


def apex_kind() -> str:
    """ "nvidia", "incomplete" (NVIDIA's without its compiled parts), "unrelated" (a package of the same name from the
    package index) or "absent".
    """
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return "absent"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "optimizers" / "fused_adam.py").is_file() for folder in folders):
        return "unrelated"
    return "incomplete" if _missing_apex_extensions() else "nvidia"


def _missing_apex_extensions() -> str:
    return ", ".join(name for name in _APEX_EXTENSIONS if importlib.util.find_spec(name) is None)


@functools.cache
def fused_layer_norm_function() -> Callable[..., Any] | None:
    """apex's fused LayerNorm (input, weight, bias, normalized_shape, eps), or None where CUDA or NVIDIA's apex is
    absent.
    """
    if not torch.cuda.is_available() or apex_kind() != "nvidia":
        return None
    module = importlib.import_module("apex.normalization.fused_layer_norm")
    function: Callable[..., Any] = module.fused_layer_norm_affine
    return function


def environment_report() -> list[Finding]:
    """Everything that decides what runs here and how fast."""
    return [
        Finding("python", platform.python_version(), required=True),
        Finding("cpu", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"),
        _torch(),
        _megatron(),
        _cuda(),
        _apex(),
    ]


def _torch() -> Finding:
    return Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", required=True)


def _megatron() -> Finding:
    version = megatron_version()
    advice = f"pip install megatron-core=={SUPPORTED[0]} (the CPU redirects refuse this version)"
    return Finding("megatron-core", str(version or "absent"), "" if is_supported(version) else advice, required=True)


def _cuda() -> Finding:
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda is None else "torch was built for CUDA but finds no device: check the driver"
        return Finding("CUDA", "absent: megatron-core runs on the CPU with gloo", advice)
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Finding("CUDA", f"{torch.version.cuda}, {torch.cuda.device_count()} x {names}")


def _apex() -> Finding:
    kind = apex_kind()
    if kind == "unrelated":
        advice = f"pip uninstall apex: that package is not NVIDIA's, which is built with: {_APEX_BUILD}"
        return Finding("apex", "a package of that name that is not NVIDIA's (ignored)", advice)
    if kind == "nvidia":
        return Finding("apex", "NVIDIA's: fused LayerNorm on CUDA")
    if kind == "incomplete":
        found = f"NVIDIA's without {_missing_apex_extensions()} (ignored)"
        return Finding("apex", found, f"optional, faster LayerNorm: {_APEX_BUILD}")
    advice = f"optional, faster LayerNorm: {_APEX_BUILD}" if torch.cuda.is_available() else ""
    return Finding("apex", "absent: torch's own LayerNorm", advice)
