"""Runs a function on several ranks joined by gloo, in worker processes that live as long as the test session.

    results = run_ranks(2, my_function, argument)      # my_function(rank, world_size, argument) -> anything picklable

The function must be importable (module level). Importing torch and megatron-core costs seconds of CPU time, so a server
that has imported them once (tests/helpers/warm.py) forks the workers, and the workers are reused; every call gets fresh
process groups, torchrun's environment variables and one torch thread per rank, and all parallel state is destroyed
afterwards. An exception in a rank is raised here with the rank's traceback as its cause; a rank that hangs (typically
in a collective) ends the call after `timeout_seconds`, prints its stack and costs only a new pool.
"""

import atexit
import contextlib
import faulthandler
import gc
import os
import pickle
import random
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from tests.helpers.warm import start

_GRACE_SECONDS = 10.0  # for the other ranks once one has failed: they usually fail in the collective that it left
_pool: list["_Worker"] = []


class RemoteTraceback(Exception):
    """Carries the traceback text of a rank; the cause of the exception that `run_ranks` raises."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(f"rank {rank}\n{text}")


class _Worker:
    def __init__(self) -> None:
        self.connection, remote = Pipe()
        self.process = start(_serve, remote)
        remote.close()

    def stop(self) -> None:
        """Ends the worker and what it has started (checkpoint writers keep helper processes)."""
        helpers: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have died by itself
            helpers = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.join()
        self.connection.close()
        for helper in helpers:
            with contextlib.suppress(psutil.NoSuchProcess):
                helper.kill()


def run_ranks(world_size: int, fn: Callable[..., Any], *args: Any, timeout_seconds: float = 240.0) -> list[Any]:
    """Calls `fn(rank, world_size, *args)` on `world_size` gloo ranks and returns their results by rank."""
    while len(_pool) < world_size:
        _pool.append(_Worker())
    meeting_point = open_meeting_point()
    for rank in range(world_size):
        job = (rank, world_size, meeting_point.port, timeout_seconds, fn, args)
        _pool[rank].connection.send_bytes(pickle.dumps(job))
    answers = _collect(world_size, timeout_seconds)
    failures = sorted((answer[3], rank) for rank, answer in answers.items() if not answer[0])  # the others follow it
    if failures or len(answers) < world_size:
        stop_pool()  # the survivors may sit in a collective for ever
    if failures:
        _, rank = failures[0]
        _, error, text, _ = answers[rank]
        raise error from RemoteTraceback(rank, text)
    if len(answers) < world_size:
        silent = sorted(set(range(world_size)) - set(answers))
        raise TimeoutError(f"ranks {silent} of {world_size} did not answer within {timeout_seconds} s")
    return [answers[rank][1] for rank in range(world_size)]


def _collect(world_size: int, timeout_seconds: float) -> dict[int, tuple]:
    """Answers (True, value) or (False, exception, traceback, time) by rank, until all have arrived or the deadline."""
    answers: dict[int, tuple] = {}
    pending: dict[Any, int] = {_pool[rank].connection: rank for rank in range(world_size)}
    deadline = time.monotonic() + timeout_seconds
    while pending and (left := deadline - time.monotonic()) > 0:
        for connection in wait(list(pending), left):
            assert isinstance(connection, Connection)
            rank = pending.pop(connection)
            try:
                answers[rank] = pickle.loads(connection.recv_bytes())
            except EOFError:
                answers[rank] = (False, RuntimeError(f"rank {rank} died without an answer"), "", time.monotonic())
            if not answers[rank][0]:
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return answers


def open_meeting_point() -> Any:
    """A key-value store at which ranks find each other, open until the caller drops it; they join at its `port`.

    The system chooses the port as the store starts to listen: one found beforehand may be taken by then.
    """
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@atexit.register
def stop_pool() -> None:
    """Ends all workers; the next call starts new ones."""
    while _pool:
        _pool.pop().stop()


def _serve(connection: Connection) -> None:
    """A worker's main loop: answer jobs until the session ends and closes the other end of the connection."""
    import torch

    from megatron_alum.compat import silence_fallback_warnings

    silence_fallback_warnings()
    torch.set_num_threads(1)
    gc.freeze()
    while True:
        try:
            job = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send_bytes(_answer(job))
        _clean_up(torch)  # after the answer: the other ranks fail as soon as this one has left the group


def _answer(job: bytes) -> bytes:
    import torch

    try:
        rank, world_size, port, timeout_seconds, fn, args = pickle.loads(job)
        faulthandler.dump_traceback_later(max(timeout_seconds - 2.0, 1.0), file=sys.__stderr__)
        _start(rank, world_size, port, torch)
        return pickle.dumps((True, fn(rank, world_size, *args)))
    except BaseException as error:
        text, when = traceback.format_exc(), time.monotonic()
        try:
            return pickle.dumps((False, error, text, when))
        except Exception:  # an exception that cannot be pickled still has its text
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"), text, when))
    finally:
        faulthandler.cancel_dump_traceback_later()


def _start(rank: int, world_size: int, port: int, torch: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    random.seed(0)
    torch.manual_seed(0)
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)


def _clean_up(torch: Any) -> None:
    """Destroys process groups and, if the job imported megatron-core, its parallel state.

    A network and its groups refer to each other, so they stay until they are collected, and every group's three threads
    wake a hundred times a second: those of a few jobs slow the whole machine down.
    """
    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is not None and parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()
