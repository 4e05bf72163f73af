"""Detection of accelerators, with stand-in packages on the import path."""

import importlib
import sys

import pytest
import torch
from packaging.version import Version

from megatron_alum.compat import detect


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Writes files of a package onto the import path; forgets the modules afterwards."""
    before = set(sys.modules)

    def write(files: dict[str, str]):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    detect.fused_layer_norm_function.cache_clear()
    yield write
    detect.fused_layer_norm_function.cache_clear()
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "apex":
            del sys.modules[name]


NVIDIA_APEX = {
    "apex/__init__.py": "raise RuntimeError('detection must not import apex')",
    "apex/optimizers/__init__.py": "",
    "apex/optimizers/fused_adam.py": "",
    "amp_C.py": "",
    "fused_layer_norm_cuda.py": "",
}
IMPORTABLE_APEX = {
    "apex/__init__.py": "",
    "apex/optimizers/__init__.py": "",
    "apex/optimizers/fused_adam.py": "",
    "amp_C.py": "",
    "fused_layer_norm_cuda.py": "",
    "apex/normalization/__init__.py": "",
    "apex/normalization/fused_layer_norm.py": "def fused_layer_norm_affine(*arguments): return arguments",
}


def _advice(name):
    (finding,) = [finding for finding in detect.environment_report() if finding.name == name]
    return finding


def test_nvidia_apex_is_distinguished_from_the_package_of_the_same_name(stand_in):
    stand_in(NVIDIA_APEX)
    assert detect.apex_kind() == "nvidia"
    assert _advice("apex").advice == ""


def test_an_apex_without_its_extensions_is_named_with_the_remedy(stand_in, monkeypatch):
    stand_in({name: text for name, text in IMPORTABLE_APEX.items() if name != "amp_C.py"})
    assert detect.apex_kind() == "incomplete"
    finding = _advice("apex")
    assert not finding.required and "without amp_C (ignored)" in finding.found
    assert "APEX_CUDA_EXT=1 pip" in finding.advice
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert detect.fused_layer_norm_function() is None


def test_unrelated_apex_is_named_with_the_remedy(stand_in):
    stand_in({"apex/__init__.py": "raise RuntimeError('detection must not import apex')", "apex/forms.py": ""})
    assert detect.apex_kind() == "unrelated"
    assert "pip uninstall apex" in _advice("apex").advice
    assert "github.com/NVIDIA/apex" in _advice("apex").advice


def test_fused_layer_norm_needs_cuda_and_nvidias_apex(stand_in, monkeypatch):
    stand_in(IMPORTABLE_APEX)
    assert detect.fused_layer_norm_function() is None  # no CUDA here
    detect.fused_layer_norm_function.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert detect.fused_layer_norm_function()("input", "weight") == ("input", "weight")


def test_report_names_a_wrong_megatron_core(monkeypatch):
    assert _advice("megatron-core").advice == ""
    monkeypatch.setattr(detect, "megatron_version", lambda: Version("0.15.0"))
    finding = _advice("megatron-core")
    assert finding.required and "pip install megatron-core==0.16.1" in finding.advice


def test_report_covers_what_a_user_asks_about():
    names = [finding.name for finding in detect.environment_report()]
    assert names == ["python", "cpu", "torch", "megatron-core", "CUDA", "apex"]
