"""What the ranks must agree on once an iteration, in one small all-reduce over a CPU group of its own.

Any rank may ask for a save or a stop, or report that a save failed, and all act upon it at the same step boundary. The
collective is started before a step and read after it, so that no rank waits for it or for its GPU. Where a
failure must become the same error on all ranks at once, there is `checkpoint.agreement.together`, which blocks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Requests:
    """What the ranks ask for at a step boundary, the same on all of them."""

    save: bool
    """some rank was asked to save (SIGUSR1 or SIGTERM)"""
    stop: bool
    """some rank was asked to end (SIGTERM)"""
    save_failed: bool
    """a background save failed on some rank"""


class PendingRequests:
    """The requests of all ranks, in flight."""

    def __init__(self, values: torch.Tensor, work: dist.Work) -> None:
        """`values` int64 [3], filled in when `work` is done."""
        self._values, self._work = values, work

    def result(self) -> Requests:
        """Wait for the slowest rank. Raises: what the collective raises for a lost rank."""
        self._work.wait()
        save, stop, failed = (bool(value) for value in self._values.tolist())
        return Requests(save, stop, failed)


class Control:
    """The control group and the signals of this process."""

    def __init__(self, *, timeout_seconds: float) -> None:
        """Collective. `timeout_seconds` bounds the wait for a rank that never joins."""
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        self._save = self._stop = False

    def collect(self, *, save_failed: bool) -> PendingRequests:
        """Start collecting the requests of all ranks, this one's as of now. Collective."""
        values = torch.tensor([self._save, self._stop, save_failed], dtype=torch.int64)
        self._save = False
        work = dist.all_reduce(values, group=self._group, async_op=True)
        assert work is not None
        return PendingRequests(values, work)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """In the body SIGTERM asks for a save and a clean end, SIGUSR1 for a save. The handlers only take note."""
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
    """Names what this rank is doing, so that the error of a hung or broken collective can report it."""

    def __init__(self, rank: int) -> None:
        """`rank` is the global rank of this process."""
        self.rank = rank
        self.operation = "starting"
        self.since = time.monotonic()
        self._own_work: list[tuple[torch.cuda.Event | float, torch.cuda.Event | float]] = []

    def enter(self, operation: str) -> None:
        """This rank begins `operation`."""
        self.operation, self.since = operation, time.monotonic()

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """In the body this rank works alone or with the ranks of its model, and waits for no replica."""
        began = _moment()
        yield
        self._own_work.append((began, _moment()))

    def take_own_work(self) -> float:
        """Seconds of own work since the last call, on the device; the host waits until it has ended."""
        pairs, self._own_work = self._own_work, []
        return sum(_seconds(began, ended) for began, ended in pairs)

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


def _moment() -> torch.cuda.Event | float:
    """Now: in the stream of the device, or here."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(began: torch.cuda.Event | float, ended: torch.cuda.Event | float) -> float:
    if isinstance(began, float) or isinstance(ended, float):
        assert isinstance(began, float) and isinstance(ended, float)
        return ended - began
    ended.synchronize()
    return began.elapsed_time(ended) / 1000


def _is_collective(error: RuntimeError) -> bool:
    """gloo reports lost and late peers as plain RuntimeErrors."""
    text = str(error)
    return "gloo" in text or "Connection" in text or "Timed out" in text
