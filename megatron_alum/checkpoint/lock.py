"""One run at a time works on a folder: a lock file that names the run, taken by its leader.

    RUN/run.lock    {"host": "node7", "process": 4711, "started": "2026-01-31 12:00:00", ...}, its mtime the heartbeat

It is created by O_EXCL, which network file systems keep atomic, and never relies on flock. A thread touches the file
every HEARTBEAT_SECONDS. A holder on this machine is stale as soon as its process is gone; one elsewhere when its
heartbeat has not changed for STALE_SECONDS, which is observed here and needs no comparison of two machines' clocks.
Taking over a stale lock prints one line. A leader whose lock was taken over, because it was suspended or cut off for
that long, saves nothing more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from megatron_alum.checkpoint.folder import LOCK_FILE

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 90.0
_POLL_SECONDS = 0.5
_GUARD_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    """name of the machine"""
    machine: str
    """boot and process namespace, in which `process` is unique; machines and containers may share a name"""
    process: int
    """its id there"""
    created: float
    """when the process started, in seconds since 1970: process ids are reused"""
    started: str
    """when the lock was taken, local time"""
    token: str
    """unique to this lock"""

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        created = psutil.Process().create_time()
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), _machine(), os.getpid(), created, started, uuid.uuid4().hex)

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """The holder that the file names; None without a file. A file that is being written or is truncated gives
        placeholders."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: stored[field.name] for field in fields(cls)})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return cls("an unknown host", "", 0, 0.0, "an unknown time", "")

    @property
    def is_gone(self) -> bool | None:
        """Whether the process has ended; None where this machine cannot tell."""
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return None
        try:
            process = psutil.Process(self.process)
            return abs(process.create_time() - self.created) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        """As used in messages."""
        return f"process {self.process} on {self.host} (since {self.started})"


class RunLock:
    """The lock of a run's folder; `take` it before anything in the folder is read or written.

    As a context manager it releases the lock at the end, if it was taken meanwhile.
    """

    def __init__(self, root: str | Path) -> None:
        """Nothing is touched yet."""
        self.root = Path(root)
        self.path = self.root / LOCK_FILE
        self._own = Holder.here()
        self._made_folder = False
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        """Take nothing yet."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Release."""
        self.release()

    def take(self) -> None:
        """Create the folder and the lock. Raises: ValueError naming the run that holds it; OSError from the disk."""
        self._made_folder = not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        while not self._create():
            holder = Holder.read(self.path)
            if holder is not None:
                why = self._why_stale(holder)
                if why is not None and self._remove(holder):
                    print(f"The lock of {holder} on {self.root} was taken over: {why}.", file=sys.stderr, flush=True)
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run-lock")
        self._thread.start()

    def check(self) -> None:
        """Raises: OSError if another run has taken over the lock meanwhile."""
        holder = Holder.read(self.path)
        if holder is None or holder.token != self._own.token:
            by = "removed" if holder is None else f"taken over by {holder}"
            raise OSError(f"the lock of this run, {self.path}, was {by}, so the folder no longer belongs to this run")

    def release(self) -> None:
        """Release the lock; safe to call twice, and without having taken it."""
        self._done.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        with contextlib.suppress(OSError):
            self._remove(self._own)
            if self._made_folder:
                self.root.rmdir()  # if it is still empty

    def _create(self) -> bool:
        """Whether the lock is ours now."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(self._own)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return True

    def _why_stale(self, holder: Holder) -> str | None:
        """Why the holder's lock may be taken over; None when it was released meanwhile. Raises: ValueError."""
        gone = holder.is_gone
        if gone:
            return "that process has ended"
        if gone is None:
            beat, began = self._heartbeat(), time.monotonic()
            while beat is not None and time.monotonic() - began < STALE_SECONDS:
                if self._heartbeat() != beat:
                    break
                time.sleep(_POLL_SECONDS)
            else:
                return None if beat is None else f"it has shown no sign of life for {STALE_SECONDS:.0f} s"
            now = Holder.read(self.path)
            if now is None:
                return None
            holder = now
        raise ValueError(
            f"--save must be a folder that no other run works on, but {self.root} is taken by {holder}. "
            "Wait until it ends or stop it, or choose another folder."
        )

    def _heartbeat(self) -> int | None:
        """Time stamp of the lock file, None without one."""
        return _time_stamp(self.path)

    def _remove(self, holder: Holder) -> bool:
        """Remove the lock of `holder`, and only that: of two that take over a stale lock, the second finds the first
        one's."""
        with self._guard():
            found = Holder.read(self.path)
            if found == holder:
                self.path.unlink()
            return found == holder

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """In the body no other process removes a lock. Held for milliseconds: a guard that stays was left by a
        crash."""
        guard = self.root / f".{LOCK_FILE}.guard"
        seen, since = None, time.monotonic()
        while True:
            try:
                os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                break
            except FileExistsError:
                stamp = _time_stamp(guard)
                if stamp != seen:
                    seen, since = stamp, time.monotonic()
                elif time.monotonic() - since > STALE_SECONDS:
                    guard.unlink(missing_ok=True)
                time.sleep(_GUARD_POLL_SECONDS)
        try:
            yield
        finally:
            guard.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # `check` finds out what matters
                self.check()
                os.utime(self.path)


def _time_stamp(path: Path) -> int | None:
    """Time stamp of a file in nanoseconds, None without one."""
    try:
        with path.open("rb") as stream:  # opening asks the server, while a stat may be answered from a cache
            return os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _machine() -> str:
    """What distinguishes boots and containers that share a host name; "" if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
