"""Two ranks on one GPU: their losses are those of one rank.

    python -m benchmarks.gpu.shared_gpu --data PREFIX --folder NEW_FOLDER

    one rank           ITERATIONS iterations, the second half adversarial
    data parallel      the same samples shared out to two ranks
    split optimizer    of which each updates half of the weights
    tensor parallel    two ranks with half of each layer and of the vocabulary: losses of split rows
    sequence parallel  and, between the layers, of the tokens

The ranks talk through gloo, since NCCL wants a GPU for each; where there are two, they talk through NCCL. Without
dropout, whose masks each rank draws for itself, and with a perturbation that is large beside rounding. In float32; an
environment without a GPU gives the same on CPUs.
"""

import subprocess
import sys

import torch

from benchmarks.gpu.real_run import ROOT, arguments_of, check_losses, command, rows_of

TENSOR = ["--tensor-model-parallel-size", "2"]
LAYOUTS = {
    "data parallel": [],
    "split optimizer": ["--use-distributed-optimizer"],
    "tensor parallel": TENSOR,
    "sequence parallel": [*TENSOR, "--sequence-parallel"],
}
EXACT = "--hidden-dropout 0 --attention-dropout 0 --alum-epsilon 0.05 --alum-noise-std 0.05".split()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TOLERANCE = 1e-4
"""of a loss: what every layout keeps to on CPUs (tests/training/test_layouts.py)"""


def main(words: list[str] | None = None) -> None:
    """All of them; raises at the first loss that differs."""
    arguments, options = arguments_of(words, __doc__, TOLERANCE)
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    joined = ["--distributed-backend", backend, "--distributed-timeout-minutes", "1"]
    alone = arguments.folder / "one rank"
    subprocess.run(command(arguments.data, alone, [*EXACT, *options]), cwd=ROOT, check=True)
    print("one rank: done", flush=True)
    for name, layout in LAYOUTS.items():
        run = arguments.folder / name
        _, *program = command(arguments.data, run, [*EXACT, *joined, *layout, *options])
        subprocess.run([*TORCHRUN, *program], cwd=ROOT, check=True)
        worst = check_losses(rows_of(alone), rows_of(run), arguments.tolerance)
        print(f"{name}: losses differ by {worst:.2g} at most", flush=True)


if __name__ == "__main__":
    sys.exit(main())
