"""Fixtures of the op tests: the implementations that can be tested on this device."""

import pytest
import torch

from megatron_alum import ops


def pytest_generate_tests(metafunc):
    if "impl" in metafunc.fixturenames:
        metafunc.parametrize("impl", ["reference", metafunc.config.getoption("--device")])


@pytest.fixture(autouse=True)
def require_extension(request):
    """A kernel test without the kernel is skipped with the reason, never silently run on the reference."""
    impl = request.node.callspec.params.get("impl") if hasattr(request.node, "callspec") else None
    info = ops.build_info()
    if impl in ("cpu", "cuda") and not info["built"]:
        pytest.skip(info["reason"])
    if impl == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda was asked for, but torch sees no GPU")


@pytest.fixture
def kernel_only():
    """For features of the kernels only; skipped with the reason where they are not built."""
    info = ops.build_info()
    if not info["built"]:
        pytest.skip(info["reason"])
