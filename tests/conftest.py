"""Shared fixtures and options: the device under test and the folder of real data (the only place that names it)."""

import gc
import os
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.helpers import file_times, memory_disk, warm
from tests.helpers.results_table import ResultsTable

SHARED_DATA = Path(os.environ.get("MEGATRON_ALUM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="device the op tests run on")
    parser.addoption("--results", type=Path, help="table in which the outcomes of slow tests are kept")
    parser.addoption("--fast", action="store_true", help="leave out the files that take long (tests/file_times.csv)")
    parser.addoption("--times", action="store_true", help="write tests/file_times.csv anew")


def pytest_configure(config):
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for worker processes too: the ranks of one test cannot share a GPU
    # A busy machine is no fault of the code: nothing here is judged by the clock.
    hypothesis.settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("untimed")
    memory_disk.use()
    warm.keep_environment()
    if config.getoption("--results"):
        config.pluginmanager.register(ResultsTable(config.getoption("--results")))
    if config.getoption("--times") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(file_times.FileTimes())


def pytest_ignore_collect(collection_path, config):
    return True if config.getoption("--fast") and file_times.is_long(collection_path) else None


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "requires_shared_data" in item.keywords and not SHARED_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no real data at {SHARED_DATA}; set MEGATRON_ALUM_DATA"))
    items.sort(key=lambda item: file_times.seconds_of(item.path), reverse=True)


def pytest_collection_finish():
    """Modules and tests live to the end: no collection need examine them again, and every Trainer triggers several."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def prefix(tmp_path_factory) -> str:
    """Shards of a small corpus, built by the real pipeline once per test run, on which networks are trained."""
    from tests.training.runs import build_corpus  # megatron-core is not installed on every machine that tests the ops

    return build_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text, vocabularies and evaluation sets; tests using it carry `requires_shared_data`."""
    return SHARED_DATA
