"""The table of slow tests: a real session with two of them, then with one again; the rows of the kept one."""

import csv
from pathlib import Path

import pytest

from tests.helpers.results_table import COLUMNS, merge
from tests.helpers.warm import start

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]

TESTS = """
import pytest

@pytest.mark.slow
def test_steady():
    pass

@pytest.mark.slow
@pytest.mark.parametrize("case", ["a"])
def test_changing(case):
    assert {value}

def test_quick():
    pass
"""
CONFTEST = """
from tests.helpers.results_table import ResultsTable

def pytest_configure(config):
    config.pluginmanager.register(ResultsTable(config.rootpath / "results.csv"))
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Sessions in a process of their own find this package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def outcomes(pytester):
    with (pytester.path / "results.csv").open(newline="") as stream:
        return {row["test"].split("::")[1]: row["outcome"] for row in csv.DictReader(stream)}


def test_a_later_run_replaces_only_its_own_rows(pytester):
    pytester.makeini("[pytest]\nmarkers = slow")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS.format(value=False))
    pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert outcomes(pytester) == {"test_steady": "passed", "test_changing[a]": "failed"}
    pytester.makepyfile(test_it=TESTS.format(value=True))
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "changing")
    assert outcomes(pytester) == {"test_steady": "passed", "test_changing[a]": "passed"}


def test_a_row_is_there_as_soon_as_its_test_has_ended(pytester):
    """A run that is killed keeps its rows so far: the second test finds the first one's row."""
    pytester.makeini("[pytest]\nmarkers = slow")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        test_it="""
        import os, pytest

        @pytest.mark.slow
        def test_first():
            pass

        @pytest.mark.slow
        def test_second():
            os._exit(9)
        """
    )
    assert pytester.runpytest_subprocess("-p", "no:cacheprovider").ret == 9
    assert outcomes(pytester) == {"test_first": "passed"}


def write_rows(path, names):
    """A worker that finishes one test after the other."""
    for name in names:
        merge(path, {name: dict.fromkeys(COLUMNS, "1") | {"test": f"test_it.py::{name}", "outcome": "passed"}})


def test_two_workers_share_the_file(pytester):
    names = [f"test_{number}" for number in range(40)]
    workers = [start(write_rows, pytester.path / "results.csv", part) for part in (names[::2], names[1::2])]
    for worker in workers:
        worker.join()
    assert outcomes(pytester) == dict.fromkeys(sorted(names), "passed")


class Collected:
    """A pytest plugin that keeps the names of the tests of a session."""

    def pytest_collection_finish(self, session):
        self.names = {item.nodeid for item in session.items}


def test_every_row_of_the_kept_table_names_a_slow_test():
    """Renamed tests, other parameters and moved files leave rows behind, which no run replaces."""
    with (ROOT / "tests" / "slow_results.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["test"] for row in csv.DictReader(stream)}
    files = {ROOT / row.split("::")[0] for row in rows}
    assert sorted(file for file in files if not file.is_file()) == []
    collected = Collected()
    words = ["--collect-only", "-q", "-s", "-p", "no:cacheprovider", "-m", "slow", f"--rootdir={ROOT}"]
    assert pytest.main([*words, *map(str, files)], plugins=[collected]) == pytest.ExitCode.OK
    assert sorted(rows - collected.names) == []
