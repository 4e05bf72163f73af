"""Which implementation serves a call, and the message when it is not the requested one; every instruction set of the
build."""

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from megatron_alum import ops
from megatron_alum.ops import dispatch
from tests.helpers.warm import run_code, run_script

ROOT = Path(__file__).resolve().parents[2]


def test_build_info_names_everything():
    info = ops.build_info()
    assert set(info) == {"built", "cuda", "architectures", "torch", "instruction_set", "reason"}
    assert info["built"] == (info["reason"] is None) == (info["instruction_set"] is not None)


def test_an_unsupported_dtype_falls_back_and_says_so_once(caplog):
    dispatch._log_once.cache_clear()
    a = torch.randn(2, 5, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        ops.symmetric_kl(a, a.clone())
        ops.symmetric_kl(a, a.clone())
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1
    assert "there is no kernel for torch.float64" in caplog.records[0].message


def test_a_requested_kernel_that_cannot_run_raises_the_reason():
    a = torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(
        ValueError, match="`impl` must be one that can run here, but is 'cpu' instead: there is no kernel for"
    ):
        ops.symmetric_kl(a, a, impl="cpu")
    with pytest.raises(ValueError, match="but is 'cuda' instead: the tensors are on cpu"):
        ops.symmetric_kl(a.float(), a.float(), impl="cuda")
    with pytest.raises(ValueError, match="`impl` must be one of auto, cuda, cpu, reference, but is 'gpu'"):
        ops.symmetric_kl(a, a, impl="gpu")


def test_without_the_extension_everything_works():
    """A process of its own, since the extension is loaded once per process."""
    code = "import torch; from megatron_alum import ops; a = torch.randn(2, 5)"
    code += "; print(ops.symmetric_kl(a, a.clone()).sum().item())"
    done = run_code(code + "; print(ops.build_info()['reason'])", MEGATRON_ALUM_NO_EXTENSION="1")
    assert done.returncode == 0 and done.stdout.split("\n")[:2] == ["0.0", "MEGATRON_ALUM_NO_EXTENSION=1"]
    assert done.stderr.count("fall back to the torch reference") == 1


def test_an_extension_of_another_torch_is_not_loaded(tmp_path, monkeypatch):
    """The version is read from the file before loading: a file that could not be loaded at all serves as proof."""
    other = tmp_path / "_C.so"
    other.write_bytes(
        b"\0" * 100 + b"megatron_alum_build:" + json.dumps({"torch": "1.13.1", "cuda": None}).encode() + b"\0"
    )
    monkeypatch.setattr(dispatch, "extension_path", lambda: other)
    reason = dispatch.load_extension.__wrapped__()
    assert reason.startswith(
        f"_C.so was built with torch 1.13.1, but torch is {torch.__version__}; rebuild with `pip install"
    )
    other.write_bytes(b"no marker")
    assert "built with an unknown torch" in dispatch.load_extension.__wrapped__()
    monkeypatch.setattr(dispatch, "extension_path", lambda: None)
    assert dispatch.load_extension.__wrapped__().startswith("megatron_alum._C is not built; rebuild with")


def test_dtypes_without_a_kernel_fall_back_wherever_they_stand():
    """Each of these once chose the kernel for its first tensor and then refused the others."""
    x, delta, grad = (torch.randn(2, 3, 8) for _ in range(3))
    step = {"step_size": 0.1, "epsilon": 0.05}
    exact = ops.ascend_and_project(delta.double(), grad.double(), **step)
    assert torch.allclose(ops.ascend_and_project(delta, grad.double(), **step).double(), exact)
    moved = ops.perturb_embeddings(x, delta.double(), grad, **step)[1]
    assert torch.allclose(moved.double(), exact)
    assert ops.perturb_embeddings(x, delta, grad, out_dtype=torch.float64, **step)[0].dtype == torch.float64
    if ops.build_info()["built"]:
        with pytest.raises(ValueError, match=r"'cpu' instead: there is no kernel for torch\.float64"):
            ops.perturb_embeddings(x, delta.double(), grad, impl="cpu", **step)


def test_labels_need_not_be_contiguous():
    clean, adv, labels = torch.randn(4, 9), torch.randn(4, 9), torch.arange(8)[::2]
    ones = torch.ones(4)
    whole = labels.contiguous()
    for weights in ({}, {"mlm_weight": ones, "kl_weight": ones}):
        found, expected = (ops.row_losses(clean, adv, given, **weights) for given in (labels, whole))
        assert torch.equal(found.mlm, expected.mlm) and torch.equal(found.kl, expected.kl)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("8.0;9.0;10.0+PTX", (8, 0), True),
        ("8.0;9.0;10.0+PTX", (8, 9), True),  # machine code of its major version
        ("8.0;9.0;10.0+PTX", (7, 5), False),
        ("8.0;9.0;10.0+PTX", (12, 0), True),  # intermediate code
        ("9.0", (8, 0), False),
        ("8.0 9.0a", (9, 0), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("Hopper", (9, 0), True),
    ],
)
def test_devices_that_a_build_has_code_for(architectures, capability, runs):
    assert dispatch.runs_on(architectures, capability) == runs


def test_each_gpu_of_a_machine_is_asked(monkeypatch):
    """The first is of a kind that the build has code for, the second is older."""
    kinds = [(9, 0), (7, 0)]
    monkeypatch.setattr(dispatch, "load_extension", lambda: None)
    monkeypatch.setattr(dispatch, "build_info", lambda: {"cuda": "13.0", "architectures": "8.0;9.0"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: kinds[device.index])
    dispatch._cached_refusal.cache_clear()
    first, second = (dispatch._refusal(torch.device("cuda", index), torch.float32) for index in range(2))
    dispatch._cached_refusal.cache_clear()
    assert first is None and "was built for 8.0;9.0, not for 7.0" in second


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ("2", "error: `USE_CUDA` must be 0 or 1, but is '2' instead."),
        ("1", None if torch.version.cuda else "error: USE_CUDA=1, but this torch is not a CUDA build."),
        ("0", "megatron_alum._C: CPU only (USE_CUDA=0)"),
    ],
)
def test_setup_obeys_use_cuda(wish, sentence):
    if sentence is None:
        pytest.skip("this torch is a CUDA build: gpu_check.py builds with USE_CUDA=1")
    if wish == "0" and int(version("setuptools").split(".")[0]) < 77:
        pytest.skip(
            "pyproject.toml needs setuptools 77, and gpu_check.py builds without it where there is an older one"
        )
    done = run_script("setup.py", "--version", environment={"USE_CUDA": wish})
    assert sentence in done.stderr and (done.returncode == 0) == (wish == "0")


def test_importing_needs_neither_megatron_nor_the_extension():
    code = "import sys; sys.modules['megatron'] = None; import megatron_alum, megatron_alum.ops; print('fine')"
    environment = {**os.environ, "MEGATRON_ALUM_NO_EXTENSION": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_every_instruction_set_passes_the_kernel_tests(instruction_set, request):
    """The tests of the kernels again in a process restricted to one instruction set; its dropout masks are those of
    the reference, so all sets draw the same."""
    info = ops.build_info()
    if not info["built"]:
        pytest.skip(info["reason"])
    if request.config.getoption("--device") != "cpu":
        pytest.skip("instruction sets are the CPU's")
    widest = ["portable", "avx2", "avx512"].index(info["instruction_set"])
    if (
        "MEGATRON_ALUM_INSTRUCTION_SET" not in os.environ
        and ["portable", "avx2", "avx512"].index(instruction_set) > widest
    ):
        pytest.skip(f"this processor has no {instruction_set}")
    if instruction_set == info["instruction_set"]:
        return  # the tests of this very process
    files = [f"tests/ops/test_{name}.py" for name in ("divergence", "dropout", "magnitudes", "noise", "perturbation")]
    code = f"""import sys, pytest
from megatron_alum import ops
assert ops.build_info()["instruction_set"] == "{instruction_set}"
sys.exit(pytest.main(sys.argv[1:]))"""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", "cpu or kernel_equals"]
    done = run_code(code, *options, *files, MEGATRON_ALUM_INSTRUCTION_SET=instruction_set)
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_unknown_instruction_set_is_refused():
    if not ops.build_info()["built"]:
        pytest.skip(ops.build_info()["reason"])
    code = "from megatron_alum import ops; ops.build_info()"
    done = run_code(code, MEGATRON_ALUM_INSTRUCTION_SET="sse9")
    assert done.returncode != 0 and "`MEGATRON_ALUM_INSTRUCTION_SET` must be one this processor has" in done.stderr
