"""Where chunks are processed: local processes, or the workers of a Dask cluster, behind one `concurrent.futures` face.

`map_in_order` keeps a bounded number of chunks under way and yields results in the order of the chunks, so that
memory does not grow with the corpus and the output does not depend on the number of workers. The first failure ends
everything: an exception of a worker arrives here with its traceback, and a worker that dies without one (killed, out
of memory) is reported instead of waited for.
"""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from megatron_alum.config.extras import require

T = TypeVar("T")
Task = TypeVar("Task", bound=tuple[Any, ...])
DASK_TIMEOUT_SECONDS = 15
CHUNKS_AHEAD_PER_WORKER = 3
"""Chunks submitted beyond the one a worker is at: enough to keep it busy while an uneven one is waited for."""


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_executor(scheduler: str, workers: int) -> Iterator[tuple[Executor, int]]:
    """(executor, number of workers) of `scheduler`: "local" with `workers` processes, or a Dask scheduler's address."""
    if scheduler == "local" and workers == 1:
        yield _InThisProcess(), 1
    elif scheduler == "local":
        with _local_pool(workers) as pool:
            yield pool, workers
    else:
        with _dask_executor(scheduler) as found:
            yield found


class _InThisProcess(Executor):
    """One worker needs no second process: a traceback is plain and a debugger works."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` now."""
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def _local_pool(workers: int) -> Iterator[Executor]:
    context = multiprocessing.get_context(_start_method())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        pool.submit(int)  # starts all workers now, before this process has threads (of the progress bar, of the pool)
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_method() -> str:
    """How worker processes begin: by a fork where that is safe, else afresh.

    A fork is there at once with every module imported (half a second a worker). Of a process with threads it may
    inherit locks that nobody will release; before 3.11 the pool itself would fork late, after it has started a thread.
    """
    may_fork = sys.platform == "linux" and sys.version_info >= (3, 11) and threading.active_count() == 1
    return "fork" if may_fork else "spawn"


def _end_with_parent() -> None:
    """Leave when the coordinating process is gone: after SIGKILL nobody else would tell the workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _dask_executor(address: str) -> Iterator[tuple[Executor, int]]:
    require("distributed")
    from distributed import Client

    try:
        client = Client(address, timeout=DASK_TIMEOUT_SECONDS)
    except (OSError, TimeoutError) as error:
        raise ValueError(f"--scheduler must be a Dask scheduler, but {address} does not answer: {error}") from error
    with client:
        threads = sum(client.nthreads().values())
        if threads == 0:
            raise ValueError(
                f"--scheduler {address} must have workers, but has none. Start some: dask worker {address}"
            )
        yield client.get_executor(pure=False, retries=0), threads


def map_in_order(
    executor: Executor, workers: int, fn: Callable[..., T], tasks: Iterable[Task]
) -> Iterator[tuple[Task, T]]:
    """(task, fn(*task)) for each task, in order, with a bounded number under way."""
    ahead: deque[tuple[Task, Future[T]]] = deque()
    try:
        for task in tasks:
            ahead.append((task, executor.submit(fn, *task)))
            if len(ahead) > workers * (1 + CHUNKS_AHEAD_PER_WORKER):
                yield _first_result(ahead)
        while ahead:
            yield _first_result(ahead)
    except BrokenProcessPool as error:
        raise ValueError(
            "Every worker process must live to the end, but one died without a traceback (killed from outside, or out "
            "of memory). Free some memory or lower --workers."
        ) from error
    finally:
        for _task, future in ahead:
            future.cancel()


def _first_result(ahead: deque[tuple[Task, Future[T]]]) -> tuple[Task, T]:
    task, future = ahead.popleft()
    return task, future.result()
