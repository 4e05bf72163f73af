"""What nvcc makes of the kernels: no warnings, no spills, and so few instructions per column that memory is the limit.

A thread's columns are unrolled, so a kernel holds a copy of a column's code for each of them: the difference between a
kernel that keeps four packs of 16 bytes in registers and one that keeps two, divided by the columns of two packs, is
what one more column costs. `pytest -s tests/ops/test_instructions.py` prints the table of csrc/README.md.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills"]
CUT = "// ---- launches ----"
PACKS = "int held_packs(int threads) { return threads == kLargeBlock ? 11 : 4; }"
# Name: (arguments of RowRole, columns of a pack, most instructions a column pair)
BUDGETS = {
    "fused, 16 bits": ("BFloat16, kFused, true, false, true, 256, true", 8, 50),
    "statistics, 16 bits": ("BFloat16, kStatistics, true, false, true, 256, true", 8, 30),
    "one-way fused, 16 bits": ("BFloat16, kFused, true, true, true, 256, true", 8, 50),
    "MLM loss alone, 16 bits": ("BFloat16, kFused, false, false, true, 256, true", 8, 20),
    "fused, float32": ("float, kFused, true, false, true, 256, true", 4, 110),
}


@pytest.fixture(scope="module")
def nvcc():
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("nvcc is not on PATH")
    return found


@pytest.fixture(scope="module")
def nvdisasm():
    found = shutil.which("nvdisasm")
    spec = importlib.util.find_spec("nvidia")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        found = found or next((str(path) for path in Path(folder).rglob("nvdisasm")), None)
    if found is None:
        pytest.skip("nvdisasm is not installed (package nvidia-cuda-nvdisasm)")
    return found


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("source", sorted((CSRC / "ops" / "cuda").glob("*.cu")), ids=lambda path: path.name)
def test_every_instantiation_without_warnings_or_spills(nvcc, source, architecture, tmp_path):
    """nvcc alone, without torch's headers; two kernels compile at a time."""
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    report = run(nvcc, *FLAGS, f"-I{CSRC}", "-gencode", target, "-cubin", "-o", tmp_path / "out.cubin", source)
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
    registers = sorted(int(n) for n in re.findall(r"Used (\d+) registers", report))
    print(f"\n{source.name} sm_{architecture}: {len(registers)} kernels, registers {registers}")
    assert registers and not any(spills)


def kernels_of(nvcc, nvdisasm, folder, packs):
    """{name: (instructions, registers)} of the budgeted kernels, each thread keeping `packs` packs of a row."""
    shutil.copytree(CSRC, folder / "csrc")
    team = folder / "csrc" / "ops" / "cuda" / "row_team.cuh"
    assert team.read_text().count(PACKS) == 1
    team.write_text(team.read_text().replace(PACKS, f"int held_packs(int) {{ return {packs}; }}"))
    source = folder / "csrc" / "ops" / "cuda" / "row_kernel.cu"
    text, cut, _ = source.read_text().partition(CUT)
    assert cut, f"row_kernel.cu must have the line {CUT}"
    wanted = [f"template __global__ void alum_kernel<RowRole<{role}>>(RowTask, int);" for role, *_ in BUDGETS.values()]
    source.write_text(text + "}  // namespace\n" + "\n".join(wanted) + "\n")
    cubin, found = folder / "out.cubin", {}
    report = run(nvcc, *FLAGS, f"-I{folder / 'csrc'}", "-arch=sm_90", "-cubin", "-o", cubin, source)
    registers = dict(re.findall(r"Function properties for (\S+)\n.*\n.*Used (\d+) registers", report))
    for section in run(nvdisasm, cubin).split("\n.text.")[1:]:
        name = section.split(":", 1)[0]
        if name in registers:
            found[name] = len(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?!NOP)\S", section)), int(registers[name])
    return found


def test_budget_of_instructions(nvcc, nvdisasm, tmp_path):
    """Warp instructions per column pair on sm_90, against a budget."""
    few, many = (kernels_of(nvcc, nvdisasm, tmp_path / str(packs), packs) for packs in (2, 4))
    assert len(few) == len(many) == len(BUDGETS)
    print("\n| kernel | instructions a column pair | most | registers |\n|---|---|---|---|")
    over = []
    for name, (role, columns, most) in BUDGETS.items():
        (more, registers), (less, _) = (next(found[x] for x in found if is_of(x, role)) for found in (many, few))
        cost = (more - less) / (2 * columns)
        print(f"| {name} | {cost:.1f} | {most} | {registers} |")
        over += [name] if cost > most else []
    assert not over


def is_of(mangled, role):
    """Whether a mangled name is that of RowRole<role>."""
    element, phase, *flags = role.split(", ")
    code = {"float": "f", "BFloat16": "13__nv_bfloat16"}[element]
    booleans = [f"Lb{int(flag == 'true')}E" for flag in (*flags[:3], flags[4])]
    number = ("kStatistics", "kGradients", "kFused").index(phase)
    return f"RowRoleI{code}L8RowPhase{number}E{''.join(booleans[:3])}Li{flags[3]}E{booleans[3]}" in mangled
