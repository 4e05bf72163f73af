"""Runs train with torch's Adam whichever other one is installed, and continue from what another one has stored."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_alum.training.optimizer import _fit_to_adam
from tests.training.runs import EXACT, arguments, launch, read_rows, without_timing

ROOT = Path(__file__).parents[2]
OPTIMIZERS = """
class FusedAdam:
    def __init__(self, *_args, **_kwargs):
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

class FusedSGD: ...
"""
"""apex.optimizers, as far as megatron-core imports it"""


def test_an_installed_apex_changes_nothing(prefix, tmp_path):
    """Even one without its compiled parts, whose Adam cannot be created: the rows are equal bit for bit."""
    (tmp_path / "apex" / "optimizers").mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").write_text("")
    (tmp_path / "apex" / "optimizers" / "__init__.py").write_text(OPTIMIZERS)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    options = {**EXACT, "train_iters": 3, "use_distributed_optimizer": True}
    command = [sys.executable, str(ROOT / "pretrain_bert_alum.py"), *arguments(prefix, tmp_path / "run", **options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    straight = launch(1, prefix, tmp_path / "straight", **options)
    assert without_timing(read_rows(tmp_path / "run")) == without_timing(straight)


APEX_GROUP = {"lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1, "step": 7}


@pytest.mark.parametrize("distributed", [False, True], ids=["replicated", "distributed"])
def test_what_apex_has_stored_fits(distributed):
    """apex counts steps in its groups, one number each, and has `bias_correction`."""
    inner = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True)
    stored = {"param_groups": [dict(APEX_GROUP)]} | ({} if distributed else {"state": {}})
    if not distributed:
        stored["param_groups"][0]["params"] = [0]
    _fit_to_adam(inner, stored)
    (group,) = stored["param_groups"]
    own = {name: value for name, value in inner.param_groups[0].items() if name != "params"}
    taken = {name: APEX_GROUP[name] for name in ("lr", "betas", "eps", "weight_decay")}
    expected = {**own, **taken, **({"step": 7} if distributed else {"params": [0]})}
    assert group == expected
    assert distributed or float(stored["state"]["common_step"]) == 7.0
