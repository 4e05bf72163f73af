"""megatron-core trains, saves and loads on the CPU through the redirects, which are applied once, explicitly, and only
on a CPU.
"""

import logging
import subprocess
import sys

import pytest
import torch

from megatron_alum.compat import cpu
from tests.compat.training_run import load, save, train
from tests.helpers.distributed import run_ranks

# Logits after loading at another tensor-parallel size: float32 sums in another order.
LOGITS_ATOL = 1e-5

_IN_A_FRESH_PROCESS = """
import logging, torch
from megatron_alum.compat import cpu, enable_cpu, versions
original = torch.cuda.current_device
import megatron_alum.parallel, megatron_alum.models
assert torch.cuda.current_device is original, "importing must not redirect"

torch.cuda.is_available, available = (lambda: True), torch.cuda.is_available
assert enable_cpu() is False and torch.cuda.current_device is original, "never with CUDA"
torch.cuda.is_available = available

cpu.is_supported = lambda version: False
try:
    enable_cpu()
except ValueError as error:
    assert "megatron-core must be 0.16.1 to 0.19.2 to run without CUDA, but is " in str(error), error
else:
    raise SystemExit("another version must be refused")
assert torch.cuda.current_device is original, "a refusal changes nothing"
cpu.is_supported = versions.is_supported

assert enable_cpu() is True and torch.cuda.current_device() == torch.device("cpu")
from megatron.core.optimizer.optimizer import FP32Optimizer
code = FP32Optimizer.__init__.__code__
assert enable_cpu() is True and FP32Optimizer.__init__.__code__ is code, "applied once"
assert len(logging.getLogger("megatron.core.tensor_parallel.random").filters) == 1
print("all well")
"""


def test_applied_once_explicitly_and_only_without_cuda_for_the_known_version():
    process = subprocess.run([sys.executable, "-c", _IN_A_FRESH_PROCESS], capture_output=True, text=True, timeout=120)
    assert process.stdout == "all well\n", process.stderr
    assert process.stderr == "", "importing and enabling must be silent"


def test_every_redirect_has_a_reason():
    assert all(len(redirect.reason) > 20 for redirect in (*cpu.CALLS, *cpu.CONSTANTS))


def test_no_cuda_literal_is_left_in_the_redirected_functions():
    cpu.enable_cpu()
    for redirect in cpu.CONSTANTS:
        module = __import__(redirect.module, fromlist=["_"])
        for name in redirect.functions:
            code = cpu._function(module, name).__code__
            assert cpu._with_cpu_literals(code) == code, name


@pytest.mark.parametrize(
    ("precision", "distributed_optimizer", "tensor_parallel_size"),
    [
        ("fp32", False, 2),
        ("bf16", False, 2),
        ("fp16", False, 1),
        ("fp32", True, 1),
        ("bf16", True, 1),
        ("fp16", True, 2),
    ],
)
def test_megatron_core_trains(precision, distributed_optimizer, tensor_parallel_size):
    for steps, messages in run_ranks(2, train, precision, distributed_optimizer, tensor_parallel_size):
        losses = [loss for loss, *_ in steps]
        assert all(succeeded for _, succeeded, *_ in steps)
        assert losses[-1] < 0.9 * losses[0]
        assert all(norm > 0 for *_, norm, _ in steps) and all(zeros is not None for *_, zeros in steps)
        assert messages == ["something else"], "exactly the RNG warning is dropped"


def test_a_checkpoint_is_saved_and_loaded_at_another_tensor_parallel_size(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    saved = run_ranks(2, save, str(folder))
    torch.testing.assert_close(saved[0], saved[1], atol=0, rtol=0)
    (loaded,) = run_ranks(1, load, str(folder))
    torch.testing.assert_close(loaded, saved[0], atol=LOGITS_ATOL, rtol=0)


def test_torch_says_nothing_about_a_compiler_for_cuda_without_a_gpu():
    """Its CUDA build does where it finds nvcc, as on a cluster's login node; that module's other messages are shown."""
    cpu.silence_fallback_warnings()
    logger = logging.getLogger("torch.utils.cpp_extension")

    def is_shown(text):
        return bool(logger.filter(logger.makeRecord(logger.name, logging.WARNING, __file__, 1, text, ("/cuda",), None)))

    assert not is_shown("No CUDA runtime is found, using CUDA_HOME='%s'") and is_shown("no compiler in %s")
