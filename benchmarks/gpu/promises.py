"""The project's promises for an H100 or H200 and what a run has measured: printed, and written to <gpu>.csv."""

import csv
from dataclasses import dataclass
from pathlib import Path

ROW_KERNEL = "ours, one launch"  # a contestant of bench_ops.py
PEAK_TFLOPS = 989.0  # H100 and H200, dense bfloat16
Table = list[dict[str, str]]


@dataclass(frozen=True)
class Promise:
    """One figure."""

    what: str
    asked: float
    measured: float | None
    """None where its step has failed"""
    at_most: bool = False

    @property
    def met(self) -> str:
        """yes, no, or unknown."""
        if self.measured is None:
            return "unknown"
        return "yes" if (self.measured <= self.asked if self.at_most else self.measured >= self.asked) else "no"


def promises(ops: Table, steps: Table) -> list[Promise]:
    """The figures from the rows of the two tables."""

    def op(name: str, contestant: str, column: str) -> float | None:
        wanted = [r for r in ops if r["op"].startswith(name) and r["contestant"].startswith(contestant)]
        return next((float(r[column]) for r in wanted if r["dtype"] == "bfloat16"), None)

    def step(name: str, column: str) -> float | None:
        found = (row[column] for row in steps if row["step"] == name)
        return next((float(value) for value in found if value), None)  # empty if stock or the standard step failed

    def inverse(value: float | None) -> float | None:
        return None if value is None else 1.0 / value

    def ratio(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one / other

    row_kernel = ("symmetric_kl", ROW_KERNEL)
    found = [
        Promise("row kernel, share of copy bandwidth", 0.75, inverse(op(*row_kernel, "against_floor"))),
        Promise("row kernel, times faster than eager", 8.0, op(*row_kernel, "speedup")),
        Promise("token role, share of copy bandwidth", 0.80, inverse(op("perturb", "ours", "against_floor"))),
        Promise("standard step, share of 989 TFLOP/s", 0.30, ratio(step("standard", "tflops"), PEAK_TFLOPS)),
        Promise("standard step, times faster than stock", 1.3, inverse(step("standard", "ratio_to_stock"))),
        Promise("ALUM step over standard step", 2.75, step("alum K=1", "ratio_to_standard"), at_most=True),
    ]
    for name in ("standard", "alum K=1"):
        memory = ratio(step(name, "peak_memory_mb"), step(name, "estimated_memory_mb"))
        found.append(Promise(f"peak memory over its estimate, {name}", 1.1, memory, at_most=True))
    return found


def read_table(path: Path, *, since: float) -> Table:
    """Rows of a CSV file written after `since` (seconds since the epoch); none from an older run."""
    if not path.is_file() or path.stat().st_mtime < since:
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def report(path: Path, found: list[Promise], machine: dict[str, str]) -> None:
    """Print the promises and write them to `path`."""
    print()
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["promise", "asked", "measured", "met", *machine])
        for promise in found:
            bound = f"{'<=' if promise.at_most else '>='} {promise.asked:g}"
            measured = "" if promise.measured is None else f"{promise.measured:.3g}"
            writer.writerow([promise.what, bound, measured, promise.met, *machine.values()])
            print(f"{promise.what:42}{bound:>10}{measured:>10}   {promise.met}", flush=True)
