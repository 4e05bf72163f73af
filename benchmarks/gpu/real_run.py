"""A real training run on one device, killed and resumed.

    python -m benchmarks.gpu.real_run --data PREFIX --folder NEW_FOLDER

    straight   ITERATIONS iterations, the second half adversarial, undisturbed
    killed     the same, killed by SIGKILL once a checkpoint holds the first adversarial iteration
    resumed    continues from that checkpoint to the end: its losses are those of the straight run
    exported   its last checkpoint as a Hugging Face folder, whose predictions are compared with the run's own

All through the commands of a user, with what a run on many GPUs uses: the distributed optimizer, overlapped
communication, saves in the background. The device is the GPU if there is one; with CUDA_VISIBLE_DEVICES empty the same
runs on the CPU.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS, SAVED = 30, 20
OPTIONS = {
    "train-iters": ITERATIONS,
    "alum-start-fraction": 0.5,
    "save-interval": SAVED // 2,
    "eval-interval": 0,
    "log-interval": 1,
    "progress-bar": "false",
    "lr": 1e-3,
}
MANY = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --async-save".split()
TOLERANCE = 0.02
"""of a loss: a GPU adds up gradients of the embedding table in a different order each time"""
START_SECONDS = 120


def command(data: str, run: Path, options: list[str], *, load: bool = False) -> list[str]:
    """The command line of a run in the folder `run`."""
    words = [sys.executable, "pretrain_bert_alum.py", "--data-path", data, "--save", str(run)]
    words += [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    return [*words, *options, *(["--load", str(run)] if load else [])]


def rows_of(run: Path) -> list[dict[str, float]]:
    """The rows that the run has logged so far, complete lines only."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def kill_when_adversarial(process: subprocess.Popen, run: Path) -> int:
    """SIGKILL once the run is past a checkpoint of its adversarial half; the iterations it had logged."""
    deadline = time.monotonic() + START_SECONDS
    try:
        while not (run / f"iter_{SAVED:07d}").is_dir():
            assert process.poll() is None, "the run was over before it could be killed"
            assert time.monotonic() < deadline, f"no checkpoint of iteration {SAVED} after {START_SECONDS} s"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return len(rows_of(run))


def check_losses(straight: list[dict[str, float]], resumed: list[dict[str, float]], tolerance: float) -> float:
    """The largest relative difference of a loss; both runs must be complete, finite, and adversarial in their second
    half."""
    worst = 0.0
    for one, other in zip(straight, resumed, strict=True):
        assert one["iteration"] == other["iteration"], "the runs must log the same iterations"
        difference = abs(one["loss"] - other["loss"]) / abs(one["loss"])
        assert difference <= tolerance, f"iteration {one['iteration']}: {one['loss']} and {other['loss']}"
        worst = max(worst, difference)
    last = straight[-1]
    assert last["iteration"] == ITERATIONS and last.get("alum_kl") is not None, "the last iteration must be adversarial"
    return worst


def arguments_of(
    words: list[str] | None, description: str | None, tolerance: float
) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a program that compares runs, and the further options that these take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prefix of preprocessed shards")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the runs")
    parser.add_argument("--tolerance", type=float, default=tolerance, help=f"of a loss (default: {tolerance})")
    return parser.parse_known_args(words)


def main(words: list[str] | None = None) -> None:
    """All four, one after the other; raises at the first failure."""
    arguments, more = arguments_of(words, __doc__, TOLERANCE)
    options = [*MANY, *more]
    straight, hurt = arguments.folder / "straight", arguments.folder / "hurt"
    subprocess.run(command(arguments.data, straight, options), cwd=ROOT, check=True)
    print("straight: done", flush=True)
    process = subprocess.Popen(command(arguments.data, hurt, options), cwd=ROOT)
    print(f"killed: after {kill_when_adversarial(process, hurt)} iterations", flush=True)
    subprocess.run(command(arguments.data, hurt, options, load=True), cwd=ROOT, check=True)
    worst = check_losses(rows_of(straight), rows_of(hurt), arguments.tolerance)
    print(f"resumed: losses differ by {worst:.2g} at most", flush=True)
    convert = [sys.executable, "tools/convert_checkpoint.py", "to-hf", "--load", str(hurt), "--verify"]
    subprocess.run([*convert, "--output", str(arguments.folder / "exported")], cwd=ROOT, check=True)
    print("exported: predictions are the same", flush=True)


if __name__ == "__main__":
    sys.exit(main())
