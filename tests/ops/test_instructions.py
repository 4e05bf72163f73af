"""What nvcc makes of the kernels: no warnings, no spills, and so few instructions per column that memory is the limit.
The tables of csrc/README.md are those of the sources (tests/ops/instructions.py)."""

import pytest

from tests.ops import instructions

README = (instructions.CSRC / "README.md").read_text(encoding="utf-8")
MEASURED_WITH = "13.0"  # nvcc; another one makes other code


@pytest.fixture(scope="module", autouse=True)
def tools():
    for name, remedy in (("nvcc", "on PATH"), ("nvdisasm", "installed (package nvidia-cuda-nvdisasm)")):
        if instructions.tool(name) is None:
            pytest.skip(f"{name} is not {remedy}")


def test_budget_of_instructions(tmp_path):
    """Warp instructions per column pair on sm_90, against a budget."""
    found = instructions.costs(90, tmp_path)
    print(f"\n{instructions.cost_table({90: found})}")
    assert [name for name, cost in found.items() if cost > instructions.BUDGETS[name][2]] == []
    if instructions.release() == MEASURED_WITH:
        for name, cost in found.items():
            line = next(line for line in README.splitlines() if line.startswith(f"| {name} |"))
            assert line.split(" | ")[3] == f"{cost:.1f}", f"csrc/README.md, by python -m tests.ops.instructions: {name}"


@pytest.mark.slow
def test_every_instantiation_without_warnings_or_spills(tmp_path):
    """nvcc alone, without torch's headers, for every architecture; the printed tables are those of csrc/README.md."""
    found = {number: instructions.costs(number, tmp_path) for number in instructions.ARCHITECTURES}
    kernels = {number: instructions.all_kernels(number, tmp_path) for number in instructions.ARCHITECTURES}
    tables = instructions.cost_table(found), instructions.kernel_table(kernels)
    print("", *tables, sep="\n\n")
    assert [kernel.name for every in kernels.values() for kernel in every if kernel.spilled_bytes] == []
    assert {cuda.name for cuda in (instructions.CSRC / "ops" / "cuda").glob("*.cu")} == set(instructions.SOURCES)
    if instructions.release() == MEASURED_WITH:
        assert all(table in README for table in tables), "csrc/README.md, by python -m tests.ops.instructions"
