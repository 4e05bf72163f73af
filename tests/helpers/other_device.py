"""A second device where there is none: tensors nominally on "lazy:0", with their values on the CPU.

    with other_device():
        model.to(OTHER_DEVICE)
        model(batch)        # RuntimeError unless batch is there too, as with a GPU

torch knows the device's name but has no backend for it, so no driver is needed. In the context every operation refuses
tensors of both devices, except copies and CPU scalars, and computes the real values otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

OTHER_DEVICE = torch.device("lazy", 0)


class _There(torch.Tensor):
    """A tensor that says it is on OTHER_DEVICE; `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner):
        described = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        there = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=OTHER_DEVICE, **described)
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


def _compute(func, args, kwargs):
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    device = kwargs.get("device")
    to_there = device is not None and torch.device(device).type == OTHER_DEVICE.type
    if not to_there and not any(isinstance(leaf, _There) for leaf in leaves):
        return func(*args, **kwargs)
    here = [leaf for leaf in leaves if not isinstance(leaf, _There) and leaf.dim() > 0]
    copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if here and func not in copies:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {OTHER_DEVICE} and cpu")
    inner = lambda leaf: leaf.inner if isinstance(leaf, _There) else leaf  # noqa: E731
    on_cpu = {**kwargs, "device": "cpu"} if to_there else kwargs
    result = func(*tree_map(inner, args), **tree_map(inner, on_cpu))
    if func._schema.is_mutable:
        return args[0]
    if device is not None and not to_there:
        return result
    return tree_map(lambda leaf: _There(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)


@contextmanager
def other_device() -> Iterator[None]:
    """In the body OTHER_DEVICE exists."""
    with _FactoryCalls():
        yield
