"""Saves of one run, each with a different disk fault: python -m tests.checkpoint.saves_on_a_faulty_disk FOLDER ARGS.

Must be started with the library of disk_faults.c preloaded; ARGS are those of a run without --save. Prints, as JSON,
what each save reported and left behind.
"""

import errno
import json
import os
import sys
from pathlib import Path

from megatron_alum.checkpoint.folder import LATEST_FILE, find_checkpoint, list_iterations
from tests.training.runs import read_rows, train_quietly

# Every file's writes, and the flush of one of each kind: of tensors, of torch.save, by name afterwards, of a text.
FAULTS = [
    (part, "write", "EIO")
    for part in (".distcp", ".metadata", "common.pt", "rng_00000.pt", "metadata.json", "config.json", "COMPLETE")
] + [
    *((part, "fsync", "EIO") for part in (".distcp", "common.pt", "metadata.json", "COMPLETE")),
    (".distcp", "write", "ENOSPC"),
    ("config.json", "write", "ENOSPC"),
    ("tokenizer.json", "write", "EIO"),
    ("metrics.jsonl", "write", "ENOSPC"),
    ("latest_checkpointed", "fsync", "EIO"),
]


def train(folder, argv, last, fault=None):
    """Continue the run to iteration `last`; returns its error."""
    if fault is not None:
        part, call, error = fault
        os.environ.update(FAULT_PATH=part, FAULT_CALL=call, FAULT_ERRNO=str(getattr(errno, error)))
    try:
        refused = train_quietly(0, 1, [*argv, "--save", folder, "--load", folder, "--exit-interval", str(last)])
    finally:
        os.environ.pop("FAULT_PATH", None)
    return None if refused is None else [type(refused).__name__, str(refused)]


def main():
    """One run continues under every fault, and after each without it."""
    folder, argv = sys.argv[1], sys.argv[2:]
    run, found = Path(folder), {}
    run.mkdir()
    assert train(folder, argv, 1) is None
    for number, fault in enumerate(FAULTS, start=1):
        refused = train(folder, argv, number + 1, fault)
        left = {
            "refused": refused,
            "iterations": list_iterations(run),
            "newest": find_checkpoint(run).name,
            "latest": (run / LATEST_FILE).read_text(),
            "leftovers": [path.name for path in run.glob(".*")],
        }
        found[" ".join(fault)] = {**left, "before": number, "after": train(folder, argv, number + 1)}
    print(json.dumps({"faults": found, "rows": read_rows(run)}))


if __name__ == "__main__":
    main()
