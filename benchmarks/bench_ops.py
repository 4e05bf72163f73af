"""Speed and memory of the fused ops against eager torch, torch.compile and the memory floor: a table and a CSV.

    python -m benchmarks.bench_ops [--device cpu|cuda] [--threads 2] [--rows 1024] [--vocab 30592] [--tokens 8192]
                              [--repeats 15] [--quick] [--output benchmarks/results/ops_cpu.csv]

Every figure is a median over rounds in which all contestants of a table take turns, so that other load on the machine
affects all of them equally; each ratio is between medians of the same run. The floor is the time that the bytes an op
must move take at the bandwidth of a plain copy measured in the same rounds. "value and both gradients" is the symmetric
KL of N rows, forward and backward: "row losses" is ops.symmetric_kl, "weighted sum" is ops.row_losses with weights,
which the training step uses, "one launch" the kernel alone. "overwritten" ones write gradients over the logits (as the
training step does); the others allocate new gradients, which on a CPU costs more than computing them, since the system
provides new pages for every call; that favours contestants that allocate less. With --keep-memory the process keeps
freed memory, and only the work of the ops is compared. "whole" is the unchunked head, for comparison.
"""

from __future__ import annotations

import argparse
import csv
import platform
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_alum.config.cli import main_guard
from megatron_alum.config.parser import Parser
from megatron_alum.report.machine import current_commit

if TYPE_CHECKING:
    from benchmarks.contestants import Run

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Row:
    """One line of the CSV; times in milliseconds."""

    op: str
    contestant: str
    dtype: str
    size: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    against_floor: float
    """This time divided by the floor's."""
    speedup: float
    """Time of the op's eager contestant divided by this one's."""
    extra_bytes: int
    """Peak memory beyond the inputs; -1 where it cannot be measured."""
    device: str
    threads: int
    torch: str
    commit: str


def table(
    rows: list[Row],
    arguments: argparse.Namespace,
    op: str,
    contestants: dict[str, Run],
    *,
    dtype: str,
    size: str,
    floor_copies: float,
) -> None:
    """Measures, prints and adds one table to the CSV; the floor is `floor_copies` times the copy, 0 = no floor."""
    import torch

    from benchmarks.contestants import extra_bytes, measure

    device = torch.device(arguments.device)
    seconds = measure(contestants, device=device, repeats=arguments.repeats)

    def quantile(name: str, share: float) -> float:
        values = seconds[name]
        return 1e3 * values[min(int(share * len(values)), len(values) - 1)]

    floor = floor_copies * quantile("copy", 0.5) if floor_copies else 0.0
    label = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    commit = current_commit()
    print(f"\n{op}, {dtype}, {size}" + (f": floor {floor:.2f} ms" if floor else ""))
    for name in seconds:
        run, median = contestants[name], quantile(name, 0.5)
        against, speedup = (median / floor if floor else float("nan")), quantile("eager", 0.5) / median
        memory = extra_bytes(run, device) if name != "copy" else 0
        where = (label, torch.get_num_threads(), torch.__version__, commit)
        measured = median, quantile(name, 0.2), quantile(name, 0.8), against, speedup, memory
        rows.append(Row(op, name, dtype, size, *measured, *where))
        times = f"{median:10.2f} ms  {against:6.2f} x floor  {speedup:7.2f} x eager"
        print(f"  {name:32s} {times}  {memory / 2**20:9.1f} MiB extra")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="") as file:  # after each table: a run that is stopped keeps what it has
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows([[f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values()] for row in rows])


def parse_arguments() -> argparse.Namespace:
    """The command line above."""
    parser = Parser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rows", type=int, default=1024, help="masked positions N")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens T of the perturbation")
    parser.add_argument("--vocab", type=int, default=30592, help="padded vocabulary V")
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--quick", action="store_true", help="without torch.compile and the released form")
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory, as torch does on a GPU")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "cpu.csv")
    return parser.parse_args()


def main() -> None:
    """All tables, the CSV after each."""
    arguments = parse_arguments()
    # After parsing: --help and refused options need no torch.
    import torch

    from benchmarks import contestants
    from megatron_alum import ops
    from megatron_alum.ops.allocator import keep_freed_memory

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.keep_memory and not keep_freed_memory():
        raise ValueError("--keep-memory needs glibc's mallopt, which this system lacks: leave it out.")
    print(f"extension: {ops.build_info()}")
    device, size = torch.device(arguments.device), f"N={arguments.rows} V={arguments.vocab}"
    add = partial(table, [], arguments)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        logits = contestants.divergence_contestants(arguments.rows, arguments.vocab, dtype, device, arguments.quick)
        # Two reads and two writes of one logit tensor: two copies.
        add("symmetric_kl, value and both gradients", logits, dtype=name, size=size, floor_copies=2)
        del logits
        mlm = contestants.mlm_contestants(arguments.rows, arguments.vocab, dtype, device)
        # One read and one write of the logits: one copy.
        add("MLM loss, value and gradient", mlm, dtype=name, size=size, floor_copies=1)
        del mlm
        size_of_x = f"T={arguments.tokens} H=768"
        moved = contestants.perturb_contestants(arguments.tokens, 768, dtype, device)
        # In units of a float32 copy (8 bytes): x, delta, g read, x_adv and delta' written.
        copies = (8 + 4 + 2 * dtype.itemsize) / 8
        add("perturb_embeddings", moved, dtype=name, size=size_of_x, floor_copies=copies)
        if device.type == "cpu":
            dropped = contestants.dropout_contestants(arguments.tokens, 768, dtype)
            add("dropout, value and gradient", dropped, dtype=name, size=size_of_x, floor_copies=2)
    head = contestants.head_contestants(arguments.rows, arguments.vocab, device)
    add("MLM head with both losses", head, dtype="float32", size=f"{size} H=256", floor_copies=0)
    print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main_guard(main)
