"""Output folders that appear only when complete: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_free(target: Path, flag: str) -> None:
    """Refuse to overwrite anything.

    Raises: ValueError when `target` exists and is not an empty folder, or is the current one: the target is replaced,
    and the user's shell would be left in the deleted folder.
    """
    if target.is_dir() and target.samefile("."):
        raise ValueError(
            f"{flag} must be another folder than the current one, but is {target} instead. Name a new folder in it."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"{flag} must name a new or empty folder, but {target} holds files. Remove it or choose another."
        )


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` on success and vanishes on any error."""
    target = target.resolve()  # a rename needs the folder's real path, not that of a link to it
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield partial
        _use_default_modes(partial)
        os.replace(partial, target)  # an empty folder of that name is replaced too
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _use_default_modes(folder: Path) -> None:
    """Give files the modes that a plain `open` would: temporary folders and safetensors files are private to their
    owner."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
