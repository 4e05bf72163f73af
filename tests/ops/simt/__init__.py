"""Runs the real CUDA sources on a CPU (simt.h says how) for tests/ops/test_simt.py: build once, then call the kernels.

executor = Executor.build(folder)                    compiles csrc/ops/cuda/*.cu with g++; `edits` changes a copy first
executor.rows(task, phase), .merge(...), .scale(...), .tokens(task)
"""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
POINTER, INT64, INT, FLOAT, BOOL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_bool
STATISTICS, GRADIENTS, FUSED = range(3)
FLAGS = ("-std=c++20", "-w", "-DSIMT_ARCH=900", f"-I{HERE}", f"-I{HERE / 'include'}")


class RowTask(ctypes.Structure):
    """csrc/ops/rows.h, field for field."""

    _fields_ = (
        [(name, POINTER) for name in ("clean", "adv")]
        + [(name, INT64) for name in ("clean_stride", "adv_stride")]
        + [(name, POINTER) for name in ("labels", "records", "mlm_weight", "kl_weight", "clean_grad", "adv_grad")]
        + [(name, INT64) for name in ("clean_grad_stride", "adv_grad_stride", "rows", "columns", "valid_columns")]
        + [("first_column", INT64), ("record_width", INT), ("element", INT)]
        + [("one_sided", BOOL), ("detach_targets", BOOL)]
    )


class TokenTask(ctypes.Structure):
    """csrc/ops/tokens.h, field for field."""

    _fields_ = (
        [(name, POINTER) for name in ("x", "delta", "grad", "mask", "x_adv", "delta_out", "token_sums")]
        + [(name, POINTER) for name in ("sample_index", "position")]
        + [(name, INT64) for name in ("tokens", "channels")]
        + [("seed", ctypes.c_uint32), ("iteration", ctypes.c_uint32), ("noise_std", FLOAT)]
        + [("step_size", FLOAT), ("epsilon", FLOAT), ("projection", INT)]
        + [(name, INT) for name in ("x_element", "delta_element", "grad_element", "out_element")]
    )


class DidNotFinish(RuntimeError):
    """A launch that the device would refuse, or a deadlock."""


@dataclass
class Executor:
    """The kernels of one build."""

    library: ctypes.CDLL
    launches: list[tuple[int, int, int]] = field(default_factory=list)
    """(blocks, threads of a block, blocks of a cluster) of every launch so far"""

    @classmethod
    def build(cls, folder: Path, edits: tuple[tuple[str, str, str], ...] = ()) -> "Executor":
        """Compiles into `folder`; an edit (file below csrc/ops/cuda, text, other text) must find its text once."""
        csrc = folder / "csrc"
        shutil.copytree(ROOT / "csrc", csrc)
        for name, text, other in edits:
            path = csrc / "ops" / "cuda" / name
            assert path.read_text().count(text) == 1, f"{name} must hold once: {text}"
            path.write_text(path.read_text().replace(text, other))
        flags = [*FLAGS, "-O1", "-ffp-contract=off", "-fPIC", f"-I{csrc}"]
        sources = [*sorted((csrc / "ops" / "cuda").glob("*.cu")), HERE / "executor.cpp"]
        objects = [folder / f"{source.stem}.o" for source in sources]
        for source, made in zip(sources, objects, strict=True):
            _run(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(made)])
        _run(["g++", "-shared", "-pthread", *map(str, objects), "-o", str(folder / "simt.so")])
        return cls(ctypes.CDLL(str(folder / "simt.so")))

    def settings(self, *, intermediate_code: int = 90, schedule: int = 0) -> None:
        """The device to plan for (80: no clusters), and the order of events, 0 to 7 (executor.cpp)."""
        self.library.simt_settings(intermediate_code, schedule)

    def rows(self, task: RowTask, phase: int) -> None:
        """launch_rows."""
        self._finish(self.library.simt_rows(ctypes.byref(task), phase))

    def tokens(self, task: TokenTask) -> None:
        """launch_tokens."""
        self._finish(self.library.simt_tokens(ctypes.byref(task)))

    def merge(self, records: int, merged: int, shards: int, rows: int, width: int, one_sided: bool) -> None:
        """launch_merge; tensors by their addresses."""
        where = POINTER(records), POINTER(merged), INT64(shards), INT64(rows)
        self._finish(self.library.simt_merge(*where, width, BOOL(one_sided)))

    def scale(self, values: int, element: int, count: int, factor: int) -> None:
        """launch_scale; tensors by their addresses."""
        self._finish(self.library.simt_scale(POINTER(values), element, INT64(count), POINTER(factor)))

    def kernels(self) -> dict[str, bool]:
        """Every instantiation of `alum_kernel` in the library, and whether it has been launched."""
        table = _run(["nm", "-C", str(self.library._name)])
        places = {name: int(place, 16) for place, _, name in (line.split(" ", 2) for line in table if line[0] != " ")}
        here, launched = places["simt_launched"], self.library.simt_launched
        launched.restype = BOOL
        names = [name for name in places if name.startswith("void alum_kernel<")]
        return {name: launched(INT64(places[name] - here)) for name in names}

    def _finish(self, error: int) -> None:
        if error:
            raise DidNotFinish
        found = (INT * 3)()
        self.library.simt_last_launch(found)
        self.launches.append(tuple(found))


def compiles(source: Path) -> bool:
    """Whether the executor's headers let a file of device code pass."""
    return subprocess.run(["g++", *FLAGS, "-fsyntax-only", str(source)], capture_output=True).returncode == 0


def _run(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
