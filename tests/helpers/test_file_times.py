"""The schedule of the suite: long files first, tests of a file in their order, none left out except by `--fast`."""

from types import SimpleNamespace

import pytest

from tests.helpers import file_times


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(file_times, "TESTS", tmp_path)
    monkeypatch.setattr(file_times, "TABLE", tmp_path / "file_times.csv")
    file_times.TABLE.write_text("file,seconds\nb/long.py,90.0\na/middle.py,3.5\ngone.py,50.0\n")
    file_times.read.cache_clear()
    yield tmp_path
    file_times.read.cache_clear()


def test_only_files_known_to_take_long_are_left_out_of_the_fast_run(table):
    files = ["a/middle.py", "b/long.py", "a/new.py", "../elsewhere/long.py"]
    assert [file for file in files if file_times.is_long((table / file).resolve())] == ["b/long.py"]
    assert sorted(files, key=lambda file: file_times.seconds_of(table / file), reverse=True)[:2] == files[1::-1]


def test_times_of_a_session_become_the_table(table):
    times = file_times.FileTimes()
    for file, duration in (("b/long.py", 2.0), ("a/quick.py", 0.5), ("a/middle.py", 4.0), ("b/long.py", 1.0)):
        times.pytest_runtest_logreport(SimpleNamespace(nodeid=f"tests/{file}::test", duration=duration))
    times.pytest_sessionfinish()
    file_times.read.cache_clear()
    assert file_times.read() == {"a/middle.py": 4.0, "b/long.py": 3.0}


def test_every_file_of_the_table_exists():
    assert [file for file in file_times.read() if not (file_times.TESTS / file).is_file()] == []
