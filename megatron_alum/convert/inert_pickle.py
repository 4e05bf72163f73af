"""torch.save files whose pickles name classes of a training framework, read without running any code.

Megatron-LM stores its argparse Namespace, enums and optimizer objects beside the weights, which weights_only refuses.
Here tensors, containers and the Namespace become themselves; every other name of a known library becomes an inert
placeholder (nothing is imported); a name of any other module is refused, because no checkpoint needs it. Files from
before PyTorch 1.6 (2020), which are not zip archives, are read too: the published BERT models are that old.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import MAGIC_NUMBER

_REAL: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
_INERT_ROOTS = frozenset(
    {"megatron", "torch", "numpy", "enum", "signal", "pathlib", "apex", "transformer_engine", "datetime"}
)
_HARMLESS_BUILTINS = (
    *("list", "dict", "tuple", "set", "frozenset", "slice", "range", "xrange"),
    *("int", "float", "complex", "bool", "str", "bytes", "bytearray", "object"),
)
# Single names from modules that also contain dangerous ones. `_codecs.encode` decodes the bytes of NumPy's random
# state.
_INERT_NAMES = frozenset(
    {("functools", "partial"), ("types", "SimpleNamespace"), ("_codecs", "encode")}
    | {("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")}
    | {("collections", name) for name in ("defaultdict", "deque", "Counter")}
    | {(module, name) for module in ("builtins", "__builtin__") for name in _HARMLESS_BUILTINS}
)


class Inert:
    """Stands for an object that is not needed: accepts whatever the pickle passes and keeps nothing."""

    def __new__(cls, *_args: Any, **_named: Any) -> Inert:
        """Any arguments."""
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_named: Any) -> None:
        """Any arguments."""

    def __repr__(self) -> str:
        """What it stands for."""
        return type(self).__name__

    def __setstate__(self, state: Any) -> None:
        """Any state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Any item."""

    def append(self, value: Any) -> None:
        """Any value."""

    def extend(self, values: Any) -> None:
        """Any values."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REAL:
            return _REAL[module, name]
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        if module.split(".")[0] in _INERT_ROOTS or (module, name) in _INERT_NAMES:
            return type(name, (Inert,), {"__module__": module})  # the name tells an activation from another
        raise ValueError(f"it names {module}.{name}, which no checkpoint needs and which could run code")


def load_inert(path: Path) -> dict[str, Any]:
    """The dictionary of a torch.save file, tensors memory-mapped where it is a zip archive.

    Raises: ValueError when the file is damaged, names foreign code, or holds no dictionary.
    """
    with _refusing(f"{path} must be a checkpoint's file"):
        is_archive = zipfile.is_zipfile(path)
        if not is_archive and not _begins_as_before_2020(path):
            raise ValueError("it is not a complete torch.save file")
        return _dictionary(_loaded(path, mmap=is_archive))


def load_inert_entry(stored: bytes, name: str) -> dict[str, Any]:
    """The dictionary that megatron-core has stored among the tensors: the one item of a list, as of torch.save.

    Raises: ValueError, which begins with `name`, as `load_inert`.
    """
    with _refusing(f"{name} must be an entry of a checkpoint"):
        if not zipfile.is_zipfile(io.BytesIO(stored)):
            raise ValueError("it is not a complete torch.save archive")
        items = _loaded(io.BytesIO(stored), mmap=False)
        return _dictionary(items[0] if isinstance(items, list) and len(items) == 1 else items)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Any error of the body as one sentence that begins with `what`."""
    try:
        yield
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{what}, but cannot be read: {reason}.") from None


def _loaded(source: Path | io.BytesIO, *, mmap: bool) -> Any:
    module = types.SimpleNamespace(
        Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load(), __name__="inert"
    )
    return torch.load(source, map_location="cpu", mmap=mmap, weights_only=False, pickle_module=module)


def _dictionary(loaded: Any) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        raise ValueError(f"it holds a {type(loaded).__name__} instead of a dictionary")
    return loaded


def _begins_as_before_2020(path: Path) -> bool:
    """Whether the file begins with the pickled magic number of PyTorch's pre-archive format."""
    with path.open("rb") as file:
        return file.read(64).find(MAGIC_NUMBER.to_bytes(10, "little")) in range(3, 8)
