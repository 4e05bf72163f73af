"""Writes tests/golden/training/synthetic_100.jsonl: python -m tests.training.make_golden"""

import tempfile
from pathlib import Path

from tests.training.runs import build_synthetic_corpus, launch

GOLDEN = Path(__file__).parents[1] / "golden" / "training" / "synthetic_100.jsonl"
OPTIONS = {"train_iters": 100, "hidden_dropout": 0.0, "attention_dropout": 0.0, "lr": 3e-3}


def run(folder: Path) -> list[dict]:
    """The rows of a new golden run."""
    return launch(1, build_synthetic_corpus(folder), folder / "run", **OPTIONS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch))
        GOLDEN.write_text((Path(scratch) / "run" / "metrics.jsonl").read_text())
