"""What nvcc makes of the kernels of csrc/ops/cuda, by disassembly: python -m tests.ops.instructions prints both tables
of csrc/README.md (some minutes; needs nvcc and nvdisasm, the latter from the package nvidia-cuda-nvdisasm).

What one more column costs: a thread's columns are unrolled, so a kernel holds a copy of a column's code for each of
them. The difference between a kernel that keeps four packs of 16 bytes in registers and one that keeps two, divided by
the columns of two packs, is the cost.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = ("row_kernel.cu", "token_kernel.cu")
ARCHITECTURES = (80, 90, 100)
FLAGS = ("-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills")
CUT = "// ---- launches ----"
PACKS = "int held_packs(int threads) { return threads == kLargeBlock ? 11 : 4; }"
REGISTERS, THREADS = 65536, 2048
"""of a processor, of all three architectures"""
# Name: (arguments of RowRole, columns of a pack, most instructions a column pair)
BUDGETS = {
    "fused, 16 bits": ("BFloat16, kFused, true, false, true, 256, true", 8, 50),
    "statistics, 16 bits": ("BFloat16, kStatistics, true, false, true, 256, true", 8, 30),
    "one-way fused, 16 bits": ("BFloat16, kFused, true, true, true, 256, true", 8, 50),
    "MLM loss alone, 16 bits (a column)": ("BFloat16, kFused, false, false, true, 256, true", 8, 20),
    "fused, float32": ("float, kFused, true, false, true, 256, true", 4, 110),
}
ROLE = re.compile(r"RowRoleI(\w+?)L8RowPhase(\d)ELb([01])ELb([01])ELb([01])ELi(\d+)ELb([01])E")


@dataclass(frozen=True)
class Kernel:
    """One instantiation of `alum_kernel`."""

    name: str
    """mangled"""
    registers: int
    """of a thread"""
    spilled_bytes: int
    instructions: int

    @property
    def kind(self) -> tuple[str, int]:
        """Its line of the table, and the threads of its block."""
        role = ROLE.search(self.name)
        if role is None:
            small = {"TokenRole": ("tokens", 128), "MergeRole": ("merge of records", 128), "ScaleRole": ("factor", 256)}
            return next(line for name, line in small.items() if name in self.name)
        what = "pairs of rows" if role[3] == "1" else "MLM loss alone"
        return f"{what}, {'registers' if role[7] == '1' else 'memory'}, blocks of {role[6]}", int(role[6])


def tool(name: str) -> str | None:
    """The path of nvcc or nvdisasm; None without it."""
    found = shutil.which(name)
    spec = importlib.util.find_spec("nvidia")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        found = found or next((str(path) for path in Path(folder).rglob(name)), None)
    return found


def run(*command: object) -> str:
    """Both outputs of a command, which must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def release() -> str:
    """Of nvcc, such as 13.0."""
    found = re.search(r"release ([\d.]+),", run(tool("nvcc"), "--version"))
    assert found, "nvcc must name its release"
    return found[1]


def kernels_of(source: Path, csrc: Path, architecture: int, folder: Path) -> list[Kernel]:
    """All kernels of a file, compiled with warnings as errors."""
    cubin = folder / f"{source.stem}-{architecture}.cubin"
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    report = run(tool("nvcc"), *FLAGS, f"-I{csrc}", "-gencode", target, "-cubin", "-o", cubin, source)
    spills = r".*, (\d+) bytes spill stores, (\d+) bytes spill loads"
    properties = rf"Function properties for (\S+)\n{spills}\n.*Used (\d+) registers"
    counts = {}
    for section in run(tool("nvdisasm"), cubin).split("\n.text.")[1:]:
        counts[section.split(":", 1)[0]] = len(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?!NOP)\S", section))
    found = [
        Kernel(name, int(registers), int(stores) + int(loads), counts[name])
        for name, stores, loads, registers in re.findall(properties, report)
    ]
    assert found and len(found) == report.count("Function properties for"), "ptxas must report every kernel"
    return found


def costs(architecture: int, folder: Path) -> dict[str, float]:
    """Warp instructions per column pair of the budgeted kernels."""
    few, many = (_budgeted(architecture, folder / f"{architecture}-{packs}", packs) for packs in (2, 4))
    return {name: (many[name] - few[name]) / (2 * columns) for name, (_, columns, _) in BUDGETS.items()}


def _budgeted(architecture: int, folder: Path, packs: int) -> dict[str, int]:
    """Instructions of the budgeted kernels, each thread keeping `packs` packs of a row."""
    shutil.copytree(CSRC, folder / "csrc")
    team = folder / "csrc" / "ops" / "cuda" / "row_team.cuh"
    assert team.read_text().count(PACKS) == 1
    team.write_text(team.read_text().replace(PACKS, f"int held_packs(int) {{ return {packs}; }}"))
    source = folder / "csrc" / "ops" / "cuda" / "row_kernel.cu"
    text, cut, _ = source.read_text().partition(CUT)
    assert cut, f"row_kernel.cu must have the line {CUT}"
    wanted = [f"template __global__ void alum_kernel<RowRole<{role}>>(RowTask, int);" for role, *_ in BUDGETS.values()]
    source.write_text(text + "}  // namespace\n" + "\n".join(wanted) + "\n")
    found = kernels_of(source, folder / "csrc", architecture, folder)
    assert len(found) == len(BUDGETS)
    return {
        name: next(kernel.instructions for kernel in found if _is_of(kernel.name, role))
        for name, (role, *_) in BUDGETS.items()
    }


def _is_of(mangled: str, role: str) -> bool:
    """Whether a mangled name is that of RowRole<role>."""
    element, phase, *flags = role.split(", ")
    number = ("kStatistics", "kGradients", "kFused").index(phase)
    words = [{"float": "f", "BFloat16": "13__nv_bfloat16"}[element], str(number)]
    words += [word if word.isdigit() else str(int(word == "true")) for word in flags]
    found = ROLE.search(mangled)
    return found is not None and list(found.groups()) == words


def resident_threads(registers: int, block: int) -> int:
    """Of one processor; registers are given out by 8 per thread."""
    return min(REGISTERS // (-(-registers // 8) * 8 * block), THREADS // block) * block


def cost_table(by_architecture: dict[int, dict[str, float]]) -> str:
    """The first table of csrc/README.md."""
    lines = [_line("kernel", "allowed", *(f"sm_{number}" for number in by_architecture)), "|---|---|---|---|---|"]
    for name, (*_, most) in BUDGETS.items():
        lines.append(_line(name, most, *(f"{found[name]:.1f}" for found in by_architecture.values())))
    return "\n".join(lines)


def kernel_table(by_architecture: dict[int, list[Kernel]]) -> str:
    """The second: of all kernels, by kind, from the least to the most."""
    groups: dict[tuple[str, int], dict[int, list[Kernel]]] = defaultdict(lambda: defaultdict(list))
    for architecture, kernels in by_architecture.items():
        for kernel in kernels:
            groups[kernel.kind][architecture].append(kernel)
    heads = [f"sm_{number}" for number in by_architecture]
    lines = [_line("kernels", "number", *heads, "resident threads", "spilled bytes"), "|---|---|---|---|---|---|---|"]
    for (kind, block), group in sorted(groups.items()):
        every = [kernel for kernels in group.values() for kernel in kernels]
        cells = [
            f"{_span(k.registers for k in kernels)} registers, {_span(k.instructions for k in kernels)} instructions"
            for kernels in group.values()
        ]
        threads = _span(resident_threads(kernel.registers, block) for kernel in every)
        number = len(every) // len(group)
        lines.append(_line(kind, number, *cells, threads, sum(kernel.spilled_bytes for kernel in every)))
    return "\n".join(lines)


def _span(numbers: object) -> str:
    low, high = min(found := sorted(set(numbers))), max(found)  # type: ignore[call-overload]
    return str(low) if low == high else f"{low} to {high}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(cost_table({number: costs(number, folder) for number in ARCHITECTURES}), flush=True)
        print()
        print(kernel_table({number: all_kernels(number, folder) for number in ARCHITECTURES}))


def all_kernels(architecture: int, folder: Path) -> list[Kernel]:
    """Of both files, as they are."""
    sources = [CSRC / "ops" / "cuda" / name for name in SOURCES]
    return [kernel for source in sources for kernel in kernels_of(source, CSRC, architecture, folder)]


if __name__ == "__main__":
    main()
