"""The parts of gpu-check on the CPU at a small size."""

import json
import re
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import probes, real_run, shared_gpu
from tests.helpers.warm import run_code
from tests.training.runs import TINY, build_corpus

CPU = torch.device("cpu")


def test_graphs_on_the_cpu():
    assert probes.graphs(CPU) == "12 results are the same from a graph"


def test_a_graph_that_keeps_old_inputs_is_noticed(monkeypatch):
    def stale(function, device):
        results = function()
        return lambda: results

    monkeypatch.setattr(probes, "captured", stale)
    with pytest.raises(AssertionError, match="a graph gives other results"):
        probes.graphs(CPU)


def test_attention_on_the_cpu_and_a_wrong_dropout():
    """In a separate process, since it creates and destroys the process group. The second run scales the weights too
    much."""
    code = """
import torch
from benchmarks.gpu import probes
print(probes.attention(torch.device("cpu"), draws=40))
from megatron_alum.models import attention
right = attention._BACKENDS["jagged"]
attention._BACKENDS["jagged"] = lambda q, k, v, s, p: right(q, k, v, s, p) * (1.2 if p else 1.0)
try:
    probes.attention(torch.device("cpu"), draws=40)
except AssertionError as error:
    print("noticed:", error)
"""
    done = run_code(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "native, jagged agree" in done.stdout and "noticed: jagged" in done.stdout


SMALL_STEP = "--model-size mini --seq-length 16 --micro-batch-size 2 --vocab-size 200".split()


@pytest.mark.slow
def test_a_compiled_step_on_the_cpu():
    code = f"import torch; from benchmarks.gpu import probes; print(probes.compiled(torch.device('cpu'), {SMALL_STEP}))"
    done = run_code(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(r"compile: \d+ graphs for all layers, \d+ places that divide one", done.stdout.splitlines()[-1])


def test_a_steady_step_on_the_cpu():
    code = f"import torch; from benchmarks.gpu import probes; print(probes.sync(torch.device('cpu'), {SMALL_STEP}))"
    done = run_code(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "three kinds of steps, none of which waits"


def row(iteration, loss, kl=None):
    return {"iteration": iteration, "loss": loss, "alum_kl": kl}


def test_losses_of_a_resumed_run(tmp_path):
    whole = [row(n, 10.0 / n, 1e-3 if n > 15 else None) for n in range(1, real_run.ITERATIONS + 1)]
    assert real_run.check_losses(whole, whole, 0.0) == 0.0
    moved = [{**r, "loss": r["loss"] * 1.01} for r in whole]
    assert real_run.check_losses(whole, moved, 0.02) == pytest.approx(0.01)
    with pytest.raises(AssertionError, match="iteration 1: "):
        real_run.check_losses(whole, moved, 0.005)
    with pytest.raises(AssertionError, match="iteration 1: "):
        real_run.check_losses(whole, [{**r, "loss": float("nan")} for r in whole], 0.02)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        real_run.check_losses(whole, whole[:-1], 0.02)
    standard = [{**r, "alum_kl": None} for r in whole]
    with pytest.raises(AssertionError, match="adversarial"):
        real_run.check_losses(standard, standard, 0.02)


def test_rows_of_a_run_that_is_writing(tmp_path):
    assert real_run.rows_of(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(1, 2.0)) + '\n{"iteration": 2, "lo')
    assert real_run.rows_of(tmp_path) == [row(1, 2.0)]


def test_a_run_that_ends_before_the_kill_is_noticed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(AssertionError, match="over before it could be killed"):
        real_run.kill_when_adversarial(process, tmp_path)


def run_part(part, folder, *words):
    """A part of gpu-check that trains, with a tiny network on the CPU; what it printed."""
    names = ("num-layers", "hidden-size", "num-attention-heads", "seq-length")
    options = [word for name in names for word in (f"--{name}", str(TINY[name]))]
    command = [sys.executable, "-m", part.__name__, "--data", build_corpus(folder), "--folder", str(folder / "runs")]
    command += [*words, *options, "--micro-batch-size", "2", "--global-batch-size", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_real_run_on_the_cpu(tmp_path):
    """Straight, killed, resumed and exported: on the CPU to the bit."""
    shown = run_part(real_run, tmp_path, "--tolerance", "0")
    assert "resumed: losses differ by 0 at most" in shown and "exported: predictions are the same" in shown


@pytest.mark.slow
def test_two_ranks_on_the_cpu(tmp_path):
    """In the place of two on one GPU."""
    shown = run_part(shared_gpu, tmp_path)
    assert re.findall(r"^(.*): losses differ by .* at most$", shown, re.MULTILINE) == list(shared_gpu.LAYOUTS)
