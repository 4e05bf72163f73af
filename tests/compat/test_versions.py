"""Which megatron-core is accepted: what the package's metadata allow, no more and no less."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from megatron_alum.compat.versions import is_supported

ROOT = Path(__file__).parents[2]
RELEASES = "0.15.3 0.16.0 0.16.1 0.17.0 0.17.1 0.18.0 0.18.2 0.19.0 0.19.2 0.19.3 0.20.0".split()


@pytest.mark.parametrize("release", RELEASES)
def test_the_redirects_accept_what_pip_installs(release):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "megatron-core"]
    assert is_supported(Version(release)) == requirement.specifier.contains(release)
    assert is_supported(Version(release)) == ("0.16.1" <= release <= "0.19.2")


def test_no_megatron_core_is_not_supported():
    assert not is_supported(None)
