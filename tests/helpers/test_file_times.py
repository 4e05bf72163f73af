"""The schedule of the suite: long files first, tests of a file in their order, none lost but by `--fast`."""

from types import SimpleNamespace

import pytest

from tests.helpers import file_times


def item(file, name):
    return SimpleNamespace(path=file_times.TESTS / file, name=name)


@pytest.fixture
def table(tmp_path, monkeypatch):
    path = tmp_path / "file_times.csv"
    path.write_text("file,seconds\nb/long.py,90.0\na/middle.py,3.5\ngone.py,50.0\n")
    monkeypatch.setattr(file_times, "TABLE", path)
    return path


ITEMS = [("a/middle.py", "x"), ("a/middle.py", "y"), ("a/new.py", "x"), ("b/long.py", "z"), ("b/long.py", "a")]


@pytest.mark.parametrize("fast", [False, True])
def test_long_files_begin_and_fast_leaves_them_out(table, fast):
    items = [item(*pair) for pair in ITEMS]
    left_out = file_times.schedule(items, fast=fast)
    names = [(entry.path.name, entry.name) for entry in items]
    rest = [("middle.py", "x"), ("middle.py", "y"), ("new.py", "x")]
    long = [("long.py", "z"), ("long.py", "a")]
    assert names == (rest if fast else long + rest)
    assert [(entry.path.name, entry.name) for entry in left_out] == (long if fast else [])


def test_times_of_a_session_become_the_table(table):
    times = file_times.FileTimes()
    for file, duration in (("b/long.py", 2.0), ("a/quick.py", 0.5), ("a/middle.py", 4.0), ("b/long.py", 1.0)):
        times.pytest_runtest_logreport(SimpleNamespace(nodeid=f"tests/{file}::test", duration=duration))
    times.pytest_sessionfinish()
    assert file_times.read() == {"a/middle.py": 4.0, "b/long.py": 3.0}


def test_every_file_of_the_table_exists():
    assert [file for file in file_times.read() if not (file_times.TESTS / file).is_file()] == []
