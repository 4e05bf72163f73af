"""Every test of fine-tuning runs in a temporary folder, so that none leaves files in the current one."""

import pytest


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    """The working directory of a test."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
