"""A rank that fails exits at once with its reason, although the other ranks never leave their process groups."""

import json

import pytest

from tests.helpers.warm import run_code
from tests.training.runs import arguments

PROGRAM = """
import sys, threading
import torch.distributed as dist
import {module} as entry
from megatron_alum.config.cli import main_guard
from megatron_alum.training import {broken} as broken

def wait_for_peers(*_args, **_kwargs):  # NCCL's way, where the peers are in a collective that this rank never joins
    threading.Event().wait()

def out_of_memory(*_args, **_kwargs):
    raise {error}

dist.destroy_process_group = wait_for_peers
broken.train_step = out_of_memory
main_guard(entry.main)
"""


def failing(tmp_path, argv, *, error, broken="loop"):
    """Status, stderr and torchrun's error file of a run whose first step raises `error`."""
    report = tmp_path / "error.json"
    program = PROGRAM.format(module="pretrain_bert_alum", broken=broken, error=error)
    done = run_code(program, *argv, TORCHELASTIC_ERROR_FILE=str(report))
    return done.returncode, done.stderr, json.loads(report.read_text())["message"]


@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
def test_a_traceback_is_shown_and_recorded_at_once(prefix, tmp_path, dry):
    argv = [*arguments(prefix, tmp_path / "run"), *(["--dry-run"] if dry else [])]
    error = "RuntimeError('CUDA out of memory')"
    status, stderr, recorded = failing(tmp_path, argv, error=error, broken="dry_run" if dry else "loop")
    assert status == 1 and "RuntimeError: CUDA out of memory" in stderr and "in out_of_memory" in stderr
    assert "CUDA out of memory" in recorded["message"] and "out_of_memory" in recorded["extraInfo"]["py_callstack"]


def test_a_users_error_is_shown_and_recorded_too(prefix, tmp_path):
    status, stderr, recorded = failing(tmp_path, arguments(prefix, tmp_path / "run"), error="ValueError('Lower --lr.')")
    assert status == 2 and "error: Lower --lr." in stderr and "Traceback" not in stderr
    assert "Lower --lr." in recorded["message"]
    assert not (tmp_path / "run" / "run.lock").exists()
