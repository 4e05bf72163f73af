"""megatron-core takes the Adam that is installed: one that cannot run is refused, and runs go on with another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.apex_stand_in import write_apex
from tests.training.runs import EXACT, arguments, largest_difference, launch, read_rows

ROOT = Path(__file__).parents[2]
TOLERANCES = {"plain": 1e-4, "distributed": 1e-4, "bf16": 2e-3}
"""relative, on losses: two float32 Adams round differently; in bf16 that moves single weights by one of 2^-8 steps"""


def train_with_apex(apex, argv):
    """The entry script in a process of its own, which finds `apex`."""
    environment = {**os.environ, "PYTHONPATH": str(apex), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "pretrain_bert_alum.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT, env=environment)


def test_an_apex_without_its_extensions_is_refused_with_the_remedy(prefix, tmp_path):
    done = train_with_apex(write_apex(tmp_path / "apex", extensions=False), arguments(prefix, tmp_path / "run"))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "apex must be installed with its CUDA extensions, but is without amp_C, fused_layer_norm_cuda" in done.stderr
    assert "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install" in done.stderr and "pip uninstall apex" in done.stderr


@pytest.mark.parametrize(
    "options",
    [{}, {"use_distributed_optimizer": True}, pytest.param({"bf16": True}, marks=pytest.mark.slow)],
    ids=["plain", "distributed", "bf16"],
)
def test_a_run_goes_on_with_another_adam_and_back(prefix, tmp_path, request, options):
    """Iterations 1-3 with torch's, 4-6 with apex's, 7-9 with torch's: the losses of torch's alone, step counts too."""
    run, options = tmp_path / "run", {**EXACT, "train_iters": 9, **options}
    straight = launch(1, prefix, tmp_path / "straight", **options)
    launch(1, prefix, run, **options, exit_interval=3)
    apex = write_apex(tmp_path / "apex", extensions=True)
    done = train_with_apex(apex, arguments(prefix, run, **options, load=run, exit_interval=6))
    assert done.returncode == 0, done.stderr[-3000:]
    launch(1, prefix, run, **options, load=run)
    worst = largest_difference(read_rows(run), straight, ("lm_loss", "nsp_loss"))
    assert max(worst.values()) < TOLERANCES[request.node.callspec.id], worst
