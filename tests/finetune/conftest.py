"""Every test of fine-tuning runs in a folder of its own, so that none leaves a file where it was started."""

import pytest


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    """The working directory of a test."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
