"""The table of slow tests: a real session of two of them, then of one again."""

import csv

pytest_plugins = ["pytester"]

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
