"""What the ranks must agree on once an iteration, in one small all-reduce over a CPU group of its own.

It carries the counts that the losses are divided by (masked tokens and sequences of the global batch, known to the host
before the first forward) and the wishes of any rank: save, stop, give up. So a signal that reaches one process is acted
upon by all at the same step boundary, a dead peer is noticed before anything is saved, and no rank asks its GPU.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from megatron_alum.parallel import ProcessGroups


@dataclass(frozen=True)
class Agreement:
    """What all ranks hold in common about the coming iteration."""

    counts: tuple[int, ...]
    """the given counts, summed over the data-parallel ranks"""
    save: bool
    """some rank was asked to save (SIGUSR1 or SIGTERM)"""
    stop: bool
    """some rank was asked to end (SIGTERM)"""
    save_failed: bool
    """a background save failed on some rank"""


class Control:
    """The control group and the signals of this process."""

    def __init__(self, groups: ProcessGroups, *, timeout_seconds: float) -> None:
        """Collective. `timeout_seconds` bounds the wait for a rank that never comes."""
        self._groups = groups
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        self._save = self._stop = False

    def agree(self, counts: Sequence[int], *, save_failed: bool) -> Agreement:
        """Sum `counts` over the data-parallel ranks and collect the wishes of all. Collective."""
        wishes = [int(self._save), int(self._stop), int(save_failed)]
        values = torch.tensor([*counts, *wishes], dtype=torch.int64)
        dist.all_reduce(values, group=self._group)
        *sums, save, stop, failed = values.tolist()
        if save or stop:
            self._save = False
        # The ranks of one model hold the same samples, so each of their counts arrives as often.
        return Agreement(tuple(s // self._groups.ranks_per_model for s in sums), bool(save), bool(stop), bool(failed))

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within: SIGTERM asks for a save and a clean end, SIGUSR1 for a save. The handlers only take note."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._save = True
        self._stop = self._stop or number == signal.SIGTERM


class Watch:
    """Names what this rank is doing, so that the error of a hung or broken collective can say it."""

    def __init__(self, rank: int) -> None:
        """`rank` is this process among all."""
        self.rank = rank
        self.operation = "starting"
        self.since = time.monotonic()

    def enter(self, operation: str) -> None:
        """This rank begins `operation`."""
        self.operation, self.since = operation, time.monotonic()

    def run(self, body: Callable[[], None]) -> None:
        """Run `body`. Raises: OSError with rank, operation and time in place of a collective's own error."""
        try:
            body()
        except (dist.DistError, RuntimeError) as error:
            if not isinstance(error, dist.DistError) and not _is_collective(error):
                raise
            raise OSError(
                f"Rank {self.rank} (process {os.getpid()}) lost the other ranks while it was {self.operation}, after "
                f"{time.monotonic() - self.since:.0f} s: {str(error).strip().splitlines()[0]} "
                "Nothing was saved; restart from the last checkpoint with --load."
            ) from error


def _is_collective(error: RuntimeError) -> bool:
    """gloo reports lost and late peers as plain RuntimeErrors."""
    text = str(error)
    return "gloo" in text or "Connection" in text or "Timed out" in text
