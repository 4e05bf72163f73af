"""Ranks agree on success: a failure on one becomes the same error on all, so that none waits in a collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def reason(error: OSError) -> str:
    """The message of the operating system or a caller, without the error number: `Input/output error
    (/runs/a/config.json)`."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror} ({error.filename})"


def together(group: dist.ProcessGroup, action: Callable[[], T], *, only_leader: bool = False) -> T | None:
    """Run `action` on every rank of `group` (or on rank 0 alone) and return its result.

    Raises: OSError on every rank if any rank's action raised OSError, ValueError likewise; the message is that of the
    lowest failing rank. `action` must not call a collective itself.
    """
    result: T | None = None
    failure: tuple[str, str] | None = None
    if not only_leader or dist.get_rank(group) == 0:
        try:
            result = action()
        except (OSError, ValueError) as error:
            failure = ("OSError", reason(error)) if isinstance(error, OSError) else ("ValueError", str(error))
    failures: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(failures, failure, group=group)
    for found in failures:
        if found is not None:
            kind, message = found
            raise OSError(message) if kind == "OSError" else ValueError(message)
    return result
