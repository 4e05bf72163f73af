"""A finished run with three checkpoints, copied by every test that damages it."""

import shutil

import pytest

from tests.training.runs import launch


@pytest.fixture(scope="session")
def finished(prefix, tmp_path_factory):
    """TP=2, iterations 2, 4 and 6 saved of 8."""
    run = tmp_path_factory.mktemp("finished") / "run"
    launch(2, prefix, run, tensor_model_parallel_size=2, train_iters=8, exit_interval=6, save_interval=2)
    return run


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
