"""Temporary folders are in memory only where it has room and nobody chose another place."""

import os
from types import SimpleNamespace

from tests.helpers import memory_disk


def test_folders_that_do_not_serve(tmp_path, monkeypatch):
    blocks, executable = memory_disk.NEEDED_BYTES // 4096, 0
    for free, flags, serves in (
        (blocks, executable, True),
        (blocks - 1, executable, False),
        (blocks, os.ST_NOEXEC | os.ST_NOSUID, False),
    ):
        found = SimpleNamespace(f_bavail=free, f_frsize=4096, f_flag=flags)
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _folder, found=found: found)
            assert memory_disk.has_room(tmp_path) == serves
    assert not memory_disk.has_room(tmp_path / "missing")


def test_a_place_that_was_chosen_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_disk, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(memory_disk, "NEEDED_BYTES", 0)
    monkeypatch.delenv("PYTEST_DEBUG_TEMPROOT", raising=False)
    memory_disk.use()
    assert os.environ["PYTEST_DEBUG_TEMPROOT"] == str(tmp_path)
    monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", "/elsewhere")
    memory_disk.use()
    assert os.environ["PYTEST_DEBUG_TEMPROOT"] == "/elsewhere"
