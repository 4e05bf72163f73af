"""The lock of a run's folder: one holder, named to others; taken over only from a dead process."""

import json
import os
import subprocess
import sys
import threading
import time
from unittest.mock import patch

import pytest

from megatron_alum.checkpoint import lock as module
from megatron_alum.checkpoint.folder import LOCK_FILE
from megatron_alum.checkpoint.lock import Holder, RunLock
from tests.training.runs import launch, launch_prepared, train_quietly

SECONDS = 0.6
"""of the tests' STALE_SECONDS"""


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats every tenth of a second."""
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "STALE_SECONDS", SECONDS)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)


def plant(root, **changes):
    """The lock of another run: this process's fields with changes."""
    root.mkdir(exist_ok=True)
    names = {name: getattr(Holder.here(), name) for name in Holder.__dataclass_fields__}
    (root / LOCK_FILE).write_text(json.dumps({**names, **changes}))


def dead_process():
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_second_run_learns_the_holder_and_can_start_after_it(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    written = (tmp_path / LOCK_FILE).read_text()
    with pytest.raises(ValueError) as caught:
        second.take()
    names = json.loads(written)
    for name in (str(os.getpid()), names["host"], names["started"], str(tmp_path)):
        assert name in str(caught.value)
    second.release()
    assert (tmp_path / LOCK_FILE).read_text() == written
    first.check()
    first.release()
    assert os.listdir(tmp_path) == []
    second = RunLock(tmp_path)
    second.take()
    second.release()


def test_a_folder_created_only_for_the_lock_is_removed_with_it(tmp_path):
    lock = RunLock(tmp_path / "a" / "run")
    lock.take()
    lock.release()
    lock.release()
    assert not (tmp_path / "a" / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [{"process": None}, {"created": 1000.0}],
    ids=["process ended", "its id is used again"],
)
def test_the_lock_of_a_dead_process_is_taken_over_with_one_line(tmp_path, capsys, changes):
    changes = {name: dead_process() if value is None else value for name, value in changes.items()}
    plant(tmp_path, token="old", **changes)
    lock, began = RunLock(tmp_path), time.monotonic()
    lock.take()
    assert time.monotonic() - began < module.STALE_SECONDS / 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "was taken over: that process has ended." in printed
    lock.check()
    lock.release()
    assert os.listdir(tmp_path) == []


ELSEWHERE = {
    "another host": {"host": "node7", "process": 4711},
    "a container of the same name": {"machine": "boot pid:[1]", "process": 1},
}


@pytest.mark.parametrize("changes", ELSEWHERE.values(), ids=ELSEWHERE)
def test_elsewhere_the_heartbeat_decides_whatever_the_clocks_say(tmp_path, quick, capsys, changes):
    plant(tmp_path, token="old", **changes)
    os.utime(tmp_path / LOCK_FILE, (10.0, 10.0))  # a clock that is wrong by decades
    beating = threading.Event()

    def beat():
        while not beating.wait(0.1):
            os.utime(tmp_path / LOCK_FILE, (10.0, os.stat(tmp_path / LOCK_FILE).st_mtime + 1))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(ValueError, match=f"is taken by process {changes['process']} on "):
        RunLock(tmp_path).take()
    beating.set()
    thread.join()
    lock = RunLock(tmp_path)
    lock.take()
    assert f"no sign of life for {SECONDS:.0f} s" in capsys.readouterr().err
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "node7"}', "\0" * 50])
def test_a_damaged_lock_is_stale_once_nobody_touches_it(tmp_path, quick, text):
    (tmp_path / LOCK_FILE).write_text(text)
    lock = RunLock(tmp_path)
    lock.take()
    lock.check()
    lock.release()


def test_a_lock_that_is_given_up_meanwhile_is_free(tmp_path, quick):
    plant(tmp_path, host="node7")
    threading.Timer(0.2, (tmp_path / LOCK_FILE).unlink).start()
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


def test_the_heartbeat_moves_on(tmp_path, quick):
    lock = RunLock(tmp_path)
    lock.take()
    os.utime(tmp_path / LOCK_FILE, (10.0, 10.0))
    deadline = time.monotonic() + 30
    while (tmp_path / LOCK_FILE).stat().st_mtime == 10.0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / LOCK_FILE).stat().st_mtime > 10.0
    lock.release()


def test_of_many_takers_of_a_stale_lock_one_succeeds(tmp_path):
    dead = dead_process()
    for number in range(20):
        root = tmp_path / str(number)
        plant(root, token="old", process=dead)
        locks, start, taken = [RunLock(root) for _ in range(8)], threading.Barrier(8), []

        def contend(lock, start=start, taken=taken):
            start.wait()
            try:
                lock.take()
                taken.append(lock)
            except ValueError:
                pass

        threads = [threading.Thread(target=contend, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].check()
        taken[0].release()
        assert os.listdir(root) == []


def test_a_lock_taken_over_is_noticed_and_left_to_its_new_holder(tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    plant(tmp_path, host="node7", process=4711)
    with pytest.raises(OSError, match="was taken over by process 4711 on node7"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "node7"


def test_two_runs_on_one_folder(prefix, tmp_path):
    """The second is refused on every rank, whether it resumes or not, and changes nothing."""
    run = tmp_path / "run"
    launch(1, prefix, run, train_iters=4, exit_interval=2)
    lock = RunLock(run)
    lock.take()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for options in ({}, {"load": run}):
        with pytest.raises(ValueError, match=rf"is taken by process {os.getpid()} on "):
            launch(2, prefix, run, train_iters=4, **options)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    lock.release()
    assert len(launch(2, prefix, run, train_iters=4, load=run)) == 4
    assert not (run / LOCK_FILE).exists()


def train_taken_over(rank, world_size, argv):
    """A leader that was suspended for so long that another run took its folder after iteration 2."""
    from pathlib import Path

    from megatron_alum.training.loop import Run

    after_step = Run._after_step

    def plant_after_two(self, *args):
        after_step(self, *args)
        if self.state.iteration == 2 and rank == 0:
            plant(Path(self.config.checkpoint.save), host="node7", process=4711, token="other")

    with patch.object(Run, "_after_step", plant_after_two):
        return train_quietly(rank, world_size, argv)


def test_a_run_whose_lock_was_taken_over_saves_nothing_more(prefix, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(OSError, match=r"iteration 4 could not be written .* was taken over by process 4711 on node7"):
        launch_prepared(2, prefix, run, train_taken_over, train_iters=4)
    assert not list(run.glob("*iter*")) and (run / LOCK_FILE).exists()
