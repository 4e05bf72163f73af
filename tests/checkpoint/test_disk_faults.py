"""A disk that refuses writes and flushes during a save (EIO, ENOSPC): reported in one line, the previous checkpoint
stays.

The faults are real: disk_faults.c, compiled here, sits between the process and the C library.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_alum.checkpoint.folder import find_checkpoint, list_iterations
from tests.checkpoint.saves_on_a_faulty_disk import FAULTS
from tests.training.runs import arguments, launch, without_timing
from tests.training.test_torchrun import torchrun

HERE = Path(__file__).parent
COMMITTED = ("latest_checkpointed",)
"""what is written after the rename that makes the checkpoint"""
REASONS = {"EIO": "Input/output error", "ENOSPC": "No space left on device"}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Environment variables that put the faulty disk under a process."""
    library = tmp_path_factory.mktemp("faults") / "disk_faults.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, HERE / "disk_faults.c", "-ldl"], check=True
    )
    return {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def saves(faulty, prefix, tmp_path_factory):
    """The outcome of every fault, and the rows of a run without faults."""
    folder = tmp_path_factory.mktemp("saves")
    options = {"train_iters": len(FAULTS) + 1, "keep_last": 0}
    command = [sys.executable, "-m", "tests.checkpoint.saves_on_a_faulty_disk", str(folder / "run")]
    done = subprocess.run(
        [*command, *arguments(prefix, None, **options)],
        cwd=HERE.parents[1],
        env={**os.environ, **faulty},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), launch(1, prefix, folder / "straight", **options)


@pytest.mark.parametrize("fault", FAULTS, ids="-".join)
def test_a_save_is_whole_or_absent(saves, fault):
    found, (part, _, error) = saves[0]["faults"][" ".join(fault)], fault
    kind, sentence = found["refused"]
    assert kind == "OSError" and REASONS[error] in sentence and "\n" not in sentence and "Errno" not in sentence
    last = found["before"] + (part in COMMITTED)
    assert found["iterations"] == list(range(1, last + 1)) and found["newest"] == f"iter_{last:07d}"
    assert found["latest"] == f"{found['before']}\n"
    assert "--load" in sentence or "checkpoints before it are untouched" in sentence
    assert [name for name in found["leftovers"] if "iter" in name] == []
    assert found["after"] is None, "the run must continue once the disk works"


def test_the_run_that_met_all_faults_equals_the_one_that_met_none(saves):
    assert without_timing(saves[0]["rows"]) == without_timing(saves[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "call", "error"), [("__1_0.distcp", "write", "EIO"), ("rng_00001.pt", "fsync", "EIO")]
)
def test_a_fault_of_one_rank_ends_all_of_them(faulty, prefix, tmp_path, part, call, error):
    """The command as a user runs it: exit status, a sentence, the previous checkpoint."""
    run, options = tmp_path / "run", {"tensor_model_parallel_size": 2, "train_iters": 4}
    launch(2, prefix, run, exit_interval=2, **options)
    disk = {**faulty, "FAULT_PATH": part, "FAULT_CALL": call, "FAULT_ERRNO": str(getattr(errno, error))}
    with (tmp_path / "log").open("w") as log:
        process = torchrun(2, arguments(prefix, run, load=run, **options), stdout=log, stderr=log, environment=disk)
        assert process.wait(timeout=240) == 1  # torchrun's own
    errors = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error: ")]
    assert errors, "torchrun may end the other rank before it has reported, but not both"
    assert all(f"iteration 4 could not be written to {run}: " in line and REASONS[error] in line for line in errors)
    assert list_iterations(run) == [2] and find_checkpoint(run) and not list(run.glob(".*iter*"))
