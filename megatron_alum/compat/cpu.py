"""Runs megatron-core without CUDA: the whole list of calls that have to be redirected, each with its reason.

megatron-core names the device in its code ("cuda" in factory calls, `torch.cuda.current_device()`), although its
algorithms need nothing but torch and a process group. `enable_cpu()` points those calls at the CPU, once per process.
It does nothing where CUDA is present and refuses versions of megatron-core that the lists below were not compared with
(versions.py).

Two kinds of redirect:
  * CALLS: attributes of torch or megatron-core that are replaced;
  * CONSTANTS: functions of megatron-core whose literals ("cuda", 'torch.cuda.FloatTensor') are replaced in the code
    object, so that nothing else in the process sees another meaning of the same literal.
The model side of CPU support (no fused softmax, no fused weight gradients, CPU initialisation) is in `models/build.py`.
"""

import contextlib
import importlib
import inspect
import logging
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megatron_alum.compat.versions import SUPPORTED, is_supported, megatron_version

# What megatron-core and its bundled FSDP say at import when neither apex nor Transformer Engine is there;
# megatron-alum doctor reports it once, with advice.
_FALLBACK_WARNINGS = (
    r"Transformer Engine and Apex are not installed\. Falling back to .*",
    r"Apex is not installed\. Falling back to Torch Norm",
    # Said whenever activations are recomputed selectively; the layers here are not Transformer Engine's.
    r"If you are using transformer_engine as the transformer implementation",
    # 0.19 imports a model that nothing here uses.
    r"MimoModelConfig is experimental",
)
# torch 2.13 renamed the two collectives that megatron-core calls under their old names.
_RENAMED_COLLECTIVES = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
# What torch says about the distributed optimizer's shards, which are views of a buffer.
_SHARDS = r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed"

_CPU_LITERALS: dict[Any, Any] = {
    "cuda": "cpu",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}


class _Drop(logging.Filter):
    """Drops what a logger says with this beginning."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


# What the tracker says when the CPU generator changes: here it is the device generator.
_RNG_WARNING = _Drop("CPU RNG state changed within GPU RNG context")
# What torch's CUDA build says where there is a compiler for CUDA, but no GPU, when megatron-core imports its tools.
_COMPILER_WITHOUT_GPU = _Drop("No CUDA runtime is found")


@dataclass(frozen=True)
class CallRedirect:
    """One replaced attribute: `module`.`attribute` becomes `replacement`, because of `reason`."""

    module: str
    attribute: str
    replacement: Callable[..., Any]
    reason: str


@dataclass(frozen=True)
class ConstantRedirect:
    """Functions of one megatron-core module whose CUDA literals become CPU ones, because of `reason`."""

    module: str
    functions: tuple[str, ...]
    reason: str
    later: tuple[str, ...] = ()
    """functions that the oldest version does not have"""


def _cpu_device() -> torch.device:
    return torch.device("cpu")


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def _no_stream(*_args: Any, **_kwargs: Any) -> None:  # torch.compile wants one function for each name
    return None


def _cpu_rng_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_cpu_rng_state(new_state: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
    torch.set_rng_state(new_state)


def _cpu_manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


def _same_tensor(self: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
    return self


CALLS = (
    CallRedirect("torch.cuda", "current_device", _cpu_device, "the device of every buffer megatron-core allocates"),
    CallRedirect("torch.cuda", "synchronize", _nothing, "CPU work is already done when a call returns"),
    CallRedirect("torch.cuda", "current_stream", _no_stream, "0.19 asks for it before it looks for CUDA graphs"),
    CallRedirect("torch.cuda", "manual_seed", _cpu_manual_seed, "the RNG tracker seeds its named states through it"),
    CallRedirect("torch.cuda", "get_rng_state", _cpu_rng_state, "the tracker and checkpoints read generator states"),
    CallRedirect("torch.cuda", "set_rng_state", _set_cpu_rng_state, "resuming restores generator states"),
    CallRedirect("torch.Tensor", "cuda", _same_tensor, "moves of weights and checkpoint tensors to the device"),
    CallRedirect(
        "megatron.core.tensor_parallel.random",
        "_get_cuda_rng_state",
        _cpu_rng_state,
        "forks of the tracker and activation recomputation swap the device generator's state",
    ),
    CallRedirect(
        "megatron.core.tensor_parallel.random", "_set_cuda_rng_state", _set_cpu_rng_state, "the other half of that swap"
    ),
)

CONSTANTS = (
    ConstantRedirect(
        "megatron.core.optimizer.optimizer",
        (
            "MixedPrecisionOptimizer.__init__",
            "Float16OptimizerWithFloat16Params.__init__",
            "FP32Optimizer.__init__",
        ),
        "scale factors are made on the device; parameters are sorted by the name of their CUDA tensor type",
        later=("MegatronOptimizer.has_grad_norm_group",),
    ),
    ConstantRedirect(
        "megatron.core.optimizer.distrib_optimizer",
        ("DistributedOptimizer.__init__", "DistributedOptimizer._build_model_and_main_param_groups"),
        "the shards of the distributed optimizer are sorted by the same type names",
    ),
    ConstantRedirect(
        "megatron.core.optimizer.grad_scaler",
        ("MegatronGradScaler.__init__", "DynamicGradScaler.__init__"),
        "the loss scale of fp16 is a device tensor",
    ),
    ConstantRedirect(
        "megatron.core.optimizer.clip_grads",
        ("get_grad_norm_fp32", "clip_grad_by_total_norm_fp32", "count_zeros_fp32"),
        "norms are accumulated in device tensors",
    ),
    ConstantRedirect(
        "megatron.core.utils",
        ("local_multi_tensor_l2_norm",),
        "the torch version of apex's norm returns a device tensor",
    ),
    ConstantRedirect(
        "megatron.core.pipeline_parallel.schedules",
        (
            "forward_backward_no_pipelining",
            "forward_backward_pipelining_without_interleaving",
            "forward_backward_pipelining_with_interleaving",
        ),
        "the schedules count tokens in a device tensor",
    ),
    ConstantRedirect(
        "megatron.core.dist_checkpointing.strategies.state_dict_saver",
        ("verify_global_md_reuse",),
        "ranks agree on reusing checkpoint metadata through a device tensor",
    ),
    ConstantRedirect(
        "megatron.core.dist_checkpointing.exchange_utils",
        ("_get_empty_tensor_for_exchange", "exchange_loaded_tensors_gather_rounds"),
        "fully parallel loading exchanges tensors through device buffers",
    ),
)


_enabled = False


def silence_fallback_warnings() -> None:
    """Silences megatron-core's warnings about apex and Transformer Engine, which nothing here needs, about the old
    names of two collectives, about its optimizer's views and about a compiler for CUDA without a GPU, and no others.
    """
    for message in _FALLBACK_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    warnings.filterwarnings("ignore", message=_RENAMED_COLLECTIVES, category=FutureWarning)
    warnings.filterwarnings("ignore", message=_SHARDS, category=UserWarning, module=r"megatron\.core\.optimizer\.")
    logging.getLogger("torch.utils.cpp_extension").addFilter(_COMPILER_WITHOUT_GPU)


def check_version() -> None:
    """Raises ValueError unless megatron-core is of a version that the redirects were compared with."""
    version = megatron_version()
    if not is_supported(version):
        raise ValueError(
            f"megatron-core must be {SUPPORTED[0]} to {SUPPORTED[1]} to run without CUDA, but is {version} "
            f"instead. Install it with `pip install megatron-core=={SUPPORTED[0]}`, or run on a machine with a GPU."
        )


def enable_cpu() -> bool:
    """Makes megatron-core run on the CPU; returns whether the redirects are in force.

    Does nothing and returns False where CUDA is available. May be called any number of times; everything that starts
    megatron-core (`parallel.initialize`) calls it. Raises ValueError for another megatron-core than the supported ones.
    """
    global _enabled
    if torch.cuda.is_available():
        return False
    if _enabled:
        return True
    check_version()
    silence_fallback_warnings()
    for call in CALLS:
        setattr(_resolve(call.module), call.attribute, call.replacement)
    for constant in CONSTANTS:
        module = importlib.import_module(constant.module)
        for name in (*constant.functions, *(name for name in constant.later if _has(module, name))):
            _replace_literals(_function(module, name), f"{constant.module}.{name}")
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(_RNG_WARNING)
    _enabled = True
    return True


def _resolve(dotted: str) -> Any:
    """The module or class of this name (`torch.Tensor` is a class)."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(dotted)
    parent, name = dotted.rsplit(".", 1)
    return getattr(importlib.import_module(parent), name)


def _has(module: types.ModuleType, qualified_name: str) -> bool:
    """Whether this version of megatron-core has that method."""
    owner, method = qualified_name.split(".")
    return hasattr(getattr(module, owner), method)


def _function(module: types.ModuleType, qualified_name: str) -> types.FunctionType:
    """The plain function behind a possibly decorated function, method or class method."""
    found: Any = module
    for part in qualified_name.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "__func__", found)
    function = inspect.unwrap(found)
    assert isinstance(function, types.FunctionType), qualified_name
    return function


def _replace_literals(function: types.FunctionType, name: str) -> None:
    before = function.__code__
    function.__code__ = _with_cpu_literals(before)
    assert function.__code__ != before, f"{name} holds no CUDA literal: is megatron-core {megatron_version()} changed?"


def _with_cpu_literals(code: types.CodeType) -> types.CodeType:
    return code.replace(co_consts=tuple(_cpu_constant(constant) for constant in code.co_consts))


def _cpu_constant(constant: Any) -> Any:
    """The constant with CUDA literals replaced, looking into tuples (from `x in [...]`) and nested functions."""
    if isinstance(constant, types.CodeType):
        return _with_cpu_literals(constant)
    if isinstance(constant, tuple):
        return tuple(_cpu_constant(item) for item in constant)
    return _CPU_LITERALS.get(constant, constant) if isinstance(constant, str) else constant
