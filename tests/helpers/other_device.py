"""A GPU where there is none: tensors that say they lie on "cuda:0", with their values on the CPU.

    with other_device() as gpu:
        model.to(OTHER_DEVICE)
        model(batch)        # RuntimeError unless batch is there too, as with a GPU
    gpu.waits               # where the host waited for the device: what was read, and the line that asked for it

Python code sees a machine with CUDA: `tensor.device`, `is_cuda`, factory calls, `torch.cuda` with a generator and clock
of its own. Every operation refuses tensors of both devices, except copies and CPU scalars, and computes the real values
otherwise. For torch's C++ the tensors lie on "lazy:0", a device whose name it knows and behind which there is nothing,
so no driver is asked. What CUDA has kernels for and the CPU has not is stood in for: packed attention, the project's
fused operations (its CPU kernels), pinned memory. A process that has run megatron-core on the CPU is no longer able to
run it here, since `enable_cpu` has changed it: use `on_fresh_rank`.
"""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch.nested._internal.nested_tensor import NestedTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

OTHER_DEVICE = torch.device("cuda", 0)
_BEHIND = torch.device("lazy", 0)
_PACKAGES = ("megatron_alum", "megatron.core", "transformers", "accelerate")
"""whose lines are named as those that wait: the innermost of them, which asked torch"""


class Gpu:
    """What the stand-in keeps: its random numbers, and where the host has waited for it."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.waits: Counter[str] = Counter()
        """{"operation at module:line": times}"""
        self.excepted: tuple[str, ...] = ()
        """functions within which the host may wait"""

    def wait(self, operation: str) -> None:
        """The host waits for the device, or the device's memory, in `operation`."""
        frame, frames = sys._getframe(1), []
        while frame is not None:
            frames.append((frame.f_globals.get("__name__", ""), frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back
        if any(function in self.excepted for _, _, function in frames):
            return
        packages = tuple(f"{package}." for package in _PACKAGES)
        named = [(module, line) for module, line, _ in frames if module.startswith(packages)]
        module, line = (named or frames[-1:])[0][:2]
        self.waits[f"{operation} at {module}:{line}"] += 1

    def run_seeded(self, function: Callable[[], Any]) -> Any:
        """Call `function`, which draws from torch's CPU generator, with the device's state in it."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            return function()
        finally:
            self.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(before)


_gpu = Gpu()


class _There(torch.Tensor):
    """A tensor that says it is on OTHER_DEVICE; `inner` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        described = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        there = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=_BEHIND, **described)
        there.inner = inner
        return there

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _FactoryCalls(TorchDispatchMode):
    """Handles calls without a tensor of OTHER_DEVICE among their arguments: `zeros(device=...)` and
    `tensor.to(...)`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _inner(leaf):
    return leaf.inner if isinstance(leaf, _There) else leaf


def _compute(func, args, kwargs):
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    device = kwargs.get("device")
    to_there = device is not None and torch.device(device).type == _BEHIND.type
    if not to_there and not any(isinstance(leaf, _There) for leaf in leaves):
        return func(*args, **kwargs)
    if any(isinstance(leaf, NestedTensor) for leaf in leaves):
        return NotImplemented  # it asks for what it holds
    is_copy = func in _COPIES
    if not is_copy and any(leaf.dim() > 0 and not isinstance(leaf, _There) for leaf in leaves):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {OTHER_DEVICE} and cpu")
    leaves_there = not to_there and (device is not None or (is_copy and not isinstance(args[0], _There)))
    if (waiting := _what_waits(func, args, kwargs, leaves_there)) is not None:
        _gpu.wait(waiting)
    on_cpu = {**kwargs, "device": "cpu"} if to_there else kwargs
    call = lambda: func(*tree_map(_inner, args), **tree_map(_inner, on_cpu))  # noqa: E731
    result = _gpu.run_seeded(call) if torch.Tag.nondeterministic_seeded in func.tags else call()
    known = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, _There)}
    for leaf in known.values():
        assert leaf.shape == leaf.inner.shape, f"{func} changes the shape of its argument"
    return result if leaves_there else tree_map(lambda leaf: _wrapped(leaf, known), result)


_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def _wrapped(leaf, known):
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return known[id(leaf)] if id(leaf) in known else _There(leaf)


def _what_waits(func, args, kwargs, leaves_there: bool) -> str | None:
    """Why the host of a GPU waits in this operation, or None."""
    name = func.name().removeprefix("aten::")
    if func in _COPIES:
        sources = args[1:2] if func is torch.ops.aten.copy_.default else args[:1]
        if isinstance(sources[0], _There):
            return f"{name} to the host" if leaves_there else None
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return None if non_blocking else f"{name} to the device, blocking"
    if torch.Tag.data_dependent_output in func.tags:
        return name
    if name.startswith(("index.", "index_put", "_index_put")):
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        fills = len(args) > 2 and args[2].numel() == 1  # by a kernel that needs no indices
        return name if by_mask and not fills else None
    return name if torch.Tag.dynamic_output_shape in func.tags else None


class _PythonSide(TorchFunctionMode):
    """What Python code sees of the tensors and says of devices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            found = func(*args)
            return OTHER_DEVICE if found.type == _BEHIND.type else found
        if func == torch.Tensor.is_cuda.__get__:
            return args[0].device.type == _BEHIND.type
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], NestedTensor):
            return _packed_attention(*args, **kwargs)
        if args and isinstance(args[0], _There):
            if func is torch.Tensor.type and len(args) == 1 and not kwargs:
                return args[0].inner.type().replace("torch.", "torch.cuda.")
            if func in (torch.Tensor.untyped_storage, torch.Tensor.data_ptr):  # tells which tensors share memory
                return func(args[0].inner)
            if func is torch.Tensor.tolist:
                return args[0].to("cpu").tolist()
            if func == torch.Tensor.data.__set__:
                func(*args)
                args[0].inner = args[1].inner
                return None
        if func is torch.Tensor.cuda:
            return args[0].to(_BEHIND, non_blocking=kwargs.get("non_blocking", False))
        if func is torch.Tensor.to:
            args = tuple(_device_behind(arg) for arg in args)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _device_behind(kwargs["device"])}
        if func is torch.Tensor.new_tensor and args[0].device.type == _BEHIND.type:
            func, args, kwargs = torch.tensor, args[1:], {"dtype": args[0].dtype, "device": _BEHIND, **kwargs}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == _BEHIND:  # as torch does, without asking
            return func(*args, **{**kwargs, "device": None}).to(_BEHIND)
        return func(*args, **kwargs)


def _device_behind(named):
    """For C++, what Python names "cuda", "cuda:0", 0 or torch.device("cuda")."""
    is_number = type(named) is int
    is_there = is_number or (isinstance(named, str | torch.device) and torch.device(named).type == OTHER_DEVICE.type)
    return _BEHIND if is_there else named


_PYTHON_SIDE = _PythonSide()
_run_engine = torch.autograd.graph._engine_run_backward


def _engine_run_backward(*args, **kwargs):
    """Backward functions written in Python see the same machine, although `Tensor.backward` is itself a function that
    the mode handles, and is left while it does."""
    with _PYTHON_SIDE:
        return _run_engine(*args, **kwargs)


_make_wrapper = torch.Tensor._make_wrapper_subclass


def _make_wrapper_subclass(*args, **kwargs):
    """Nested tensors are where Python says that their values are."""
    return _make_wrapper(*(_device_behind(arg) if isinstance(arg, torch.device) else arg for arg in args), **kwargs)


def _packed_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """The kernel of nested tensors [sequences, heads, lengths, D]: it knows the lengths without asking."""
    assert attn_mask is None and not is_causal
    offsets = query.offsets()
    bounds = offsets.inner.tolist()
    parts = [tensor.transpose(1, 2).values() for tensor in (query, key, value)]
    contexts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(part[begin:end].transpose(0, 1) for part in parts), dropout_p=dropout_p
        ).transpose(0, 1)
        for begin, end in pairwise(bounds)
    ]
    return torch.nested.nested_tensor_from_jagged(torch.cat(contexts), offsets=offsets).transpose(1, 2)


def _apply(module, fn, recurse=True):
    """Module._apply, whose `param.data = moved` needs tensors of one kind: a new parameter takes the old one's place
    and attributes instead, and stays shared where that was."""
    moved: dict[int, torch.nn.Parameter] = {}
    for part in module.modules() if recurse else [module]:
        for name, old in part._parameters.items():
            if old is not None:
                part._parameters[name] = moved.setdefault(id(old), _moved_parameter(old, fn))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fn(buffer)
    return module


def _moved_parameter(old, fn):
    with torch.no_grad():
        value = fn(old)
    if isinstance(value, _There) == isinstance(old, _There):
        old.data = value
        return old
    new = torch.nn.Parameter(value, old.requires_grad)
    new.__dict__.update({name: value for name, value in old.__dict__.items() if name != "inner"})
    return new


class _Generator(torch.Generator):
    """A generator of either device."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if torch.device(device).type == OTHER_DEVICE.type else device)


class _Stream:
    """The device's only stream, in which everything is done at once."""

    def wait_stream(self, _other):
        """Nothing is outstanding."""

    wait_event = wait_stream

    def is_capturing(self):
        """No graph is recorded."""
        return False

    def synchronize(self):
        _gpu.wait("Stream.synchronize")


_ONE_STREAM = _Stream()


class _Event:
    """A mark in the device's only stream."""

    def __init__(self, *_args, **_kwargs):
        self.time = 0.0

    def record(self, *_args):
        self.time = time.perf_counter()

    def synchronize(self):
        _gpu.wait("Event.synchronize")

    def elapsed_time(self, other):
        return 1000 * (other.time - self.time)


def _cuda() -> dict[str, Any]:
    """What of torch.cuda is replaced."""
    generator = _gpu.generator
    constants = {"is_available": True, "is_initialized": True, "current_device": 0, "device_count": 1}
    constants |= {"get_device_capability": (9, 0), "get_device_name": "stand-in", "current_stream": _ONE_STREAM}
    constants |= {"max_memory_allocated": 0, "memory_allocated": 0}
    constants |= dict.fromkeys(("_lazy_init", "set_device", "reset_peak_memory_stats", "empty_cache"))
    return {name: _always(value) for name, value in constants.items()} | {
        "synchronize": lambda *_: _gpu.wait("synchronize"),
        "manual_seed": lambda seed: generator.manual_seed(seed),
        "manual_seed_all": lambda seed: generator.manual_seed(seed),
        "get_rng_state": lambda *_args, **_kwargs: generator.get_state(),
        "set_rng_state": lambda state, *_args, **_kwargs: generator.set_state(state),
        "default_generators": (generator,),
        "Event": _Event,
        "Stream": _Stream,
        "stream": lambda *_: contextlib.nullcontext(),
    }


def _always(value: Any) -> Callable[..., Any]:
    """A function of its own, since torch.compile tells those of torch.cuda apart by their identity."""
    return lambda *_args, **_kwargs: value


@contextmanager
def other_device() -> Iterator[Gpu]:
    """Within: OTHER_DEVICE is there, and is the machine's GPU."""
    from megatron_alum.ops import dispatch

    global _gpu
    _gpu = Gpu()
    with ExitStack() as stack:
        for name, replacement in _cuda().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
            if hasattr(torch.cuda.random, name):
                stack.enter_context(mock.patch.object(torch.cuda.random, name, replacement))
        # A CUDA build of torch would ask the driver.
        stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", _always(_ONE_STREAM)))
        for owner in (torch.autograd, torch.autograd.graph):
            stack.enter_context(mock.patch.object(owner, "_engine_run_backward", _engine_run_backward))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", _apply))
        stack.enter_context(mock.patch.object(torch.Tensor, "_make_wrapper_subclass", _make_wrapper_subclass))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone()))
        stack.enter_context(mock.patch.object(dispatch, "_refusal", lambda device, dtype: dispatch.load_extension()))
        stack.enter_context(_FactoryCalls())
        stack.enter_context(_PYTHON_SIDE)
        yield _gpu


def on_fresh_rank(function: Callable[..., Any], *args: Any) -> Any:
    """`function(0, 1, *args)` in a process that has not run megatron-core yet."""
    from tests.helpers.distributed import run_ranks, stop_pool

    stop_pool()
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(stop_pool)
        (answer,) = run_ranks(1, function, *args)
    return answer
