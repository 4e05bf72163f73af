"""The corpus of the training tests, built once a session by the real preprocessing pipeline."""

import pytest

from tests.training.runs import build_corpus


@pytest.fixture(scope="session")
def prefix(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"))
