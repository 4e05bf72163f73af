"""Every shipped recipe: parsed unchanged, compared with the paper's numbers, and dry-run with a small network."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.planning.flops import TextSize, run_iterations
from megatron_alum.planning.memory import estimate_memory
from tests.helpers.distributed import run_ranks
from tests.training.runs import TINY, arguments, dry_run_output

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path for path in EXAMPLES.glob("*.yaml") if "train-iters" in path.read_text())


def read(name):
    return parse_config(RunConfig, ["--config", str(EXAMPLES / name), "--save", "run"])


def test_the_papers_settings():
    """ALUM section 4.2."""
    scratch, plus, continual = (read(f"{name}.yaml") for name in ("from_scratch", "bert_plus", "continual_roberta"))
    assert run_iterations(scratch) == {"standard": 500_000, "alum": 500_000}
    assert run_iterations(plus) == {"standard": 1_600_000, "alum": 0}
    assert run_iterations(continual) == {"standard": 0, "alum": 100_000}
    assert [config.optimizer.lr for config in (scratch, plus, continual)] == [1e-4, 1e-4, 4e-5]
    assert {config.training.global_batch_size for config in (scratch, plus, continual)} == {256}
    assert scratch.data.mask_rates == (0.05, 0.1, 0.15, 0.2, 0.25) and continual.data.mask_rates == (0.15,)
    assert continual.data.objective_for(continual.model.model_type) == "none"


def test_recipes_divide_over_the_papers_gpus():
    base, large, huge = read("from_scratch.yaml"), read("bert_large.yaml"), read("bert_3.9b.yaml")
    assert base.data_parallel_size(16) == large.data_parallel_size(16) == huge.data_parallel_size(16) == 16


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_needs(recipe):
    """The estimate for 16 GPUs and full rows, for the phase that needs most."""
    config = read(recipe.name)
    words, options = 50_265 if "roberta" in recipe.stem else 30_522, {"world_size": 16, "on_gpu": True}
    phases = [phase for phase, iterations in run_iterations(config).items() if iterations]
    text = TextSize.full(config)
    needed = max(estimate_memory(config, phase, vocab_size=words, text=text, **options).total for phase in phases)
    assert f"needs {needed / 1e9:.1f} GB on each" in recipe.read_text().replace("\n# ", " ")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_builds_the_recipe(prefix, tmp_path, monkeypatch, recipe):
    """The recipe with the corpus, the network's size and the world of this test."""
    monkeypatch.chdir(tmp_path)
    small = ("num-layers", "hidden-size", "num-attention-heads", "seq-length")
    argv = ["--config", str(recipe), "--data-path", prefix, "--dry-run", "--init-from", "none"]
    argv += [word for name in small for word in (f"--{name}", str(TINY[name]))]
    argv += ["--max-position-embeddings", "48", "--tensor-model-parallel-size", "2", "--peak-tflops", "989"]
    if "roberta" in recipe.stem:
        argv += ["--model-type", "bert", "--objective", "none"]  # the corpus has a WordPiece vocabulary
    printed = run_ranks(2, dry_run_output, argv)[0]
    config = parse_config(RunConfig, argv)
    for phase, iterations in run_iterations(config).items():
        assert (f"{phase:11} {iterations:,} iterations" in printed) == bool(iterations)
    assert re.search(
        r"batch +(256|1024) sequences = \d+ a micro-batch on average x \d+ micro-batches x 1 data-parallel", printed
    )
    assert re.search(r"tokens +\d+ a sequence \(padded rows of 48 would be \d+% full\)", printed)
    assert re.search(r"balance +the fullest replica has 0.0% more tokens than the mean", printed)  # of one
    assert re.search(r"attention +native \(", printed)
    assert re.search(r"time +[\d,.]+ (seconds|minutes|hours|days) at the measured speed", printed)
    assert re.search(r"projection +[\d,.]+ (seconds|minutes|hours|days) at 40% of 989 TFLOP/s x 2", printed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", sorted(EXAMPLES.glob("launch_*.sh")), ids=lambda path: path.stem)
def test_launchers_are_valid_shell_and_name_the_entry(launcher):
    assert subprocess.run(["bash", "-n", str(launcher)], capture_output=True).returncode == 0
    assert 'pretrain_bert_alum.py "$@"' in launcher.read_text()


@pytest.mark.parametrize("launcher", sorted(EXAMPLES.glob("launch_*.sh")), ids=lambda path: path.stem)
def test_torchrun_waits_for_the_last_save(launcher, monkeypatch):
    (seconds,) = re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=\$\{SAVE_SECONDS:-(\d+)\}", launcher.read_text())
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", seconds)
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == int(seconds) >= 240
    for warning in re.findall(r"#SBATCH --signal=TERM@(\d+)", launcher.read_text()):
        assert int(warning) >= int(seconds) + 60


SRUN = """#!/bin/sh
echo srun >>calls
test -z "$REACHES" || echo "$REACHES" >run/latest_checkpointed_iteration.txt
exit "$ENDS_WITH"
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo node1; else echo "$*" >>calls; fi
"""


@pytest.mark.parametrize(
    ("ends_with", "reaches", "requeued"),
    [(0, "900", False), (1, "700", True), (1, "500", False), (1, "", False)],
    ids=["finished", "out of time", "no newer checkpoint", "a mistyped flag"],
)
def test_slurm_requeues_only_a_run_that_made_progress(tmp_path, ends_with, reaches, requeued):
    """With stand-ins for srun, which records how far the run gets, and scontrol; the run began at iteration 500."""
    done = submit(tmp_path, ["--save", "run", "--load", "run"], ENDS_WITH=str(ends_with), REACHES=reaches)
    assert (done.returncode == 0) == (requeued or ends_with == 0)
    assert (tmp_path / "calls").read_text().splitlines() == ["srun", *(["requeue 7"] if requeued else [])]
    assert ("the job is not requeued" in done.stderr) == (done.returncode != 0)


def test_slurm_refuses_a_run_whose_folder_it_cannot_see(tmp_path):
    done = submit(tmp_path, ["--config", "run.yaml"], ENDS_WITH="0", REACHES="")
    assert done.returncode == 2 and done.stderr.startswith("error: --save DIR must be on the command line")
    assert not (tmp_path / "calls").exists()


def submit(folder, argv, **environment):
    """examples/launch_slurm.sh in `folder`, as Slurm would start it."""
    (folder / "run").mkdir()
    (folder / "run" / "latest_checkpointed_iteration.txt").write_text("500\n")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    path = {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}
    command = ["bash", str(EXAMPLES / "launch_slurm.sh"), *argv]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, **slurm, **path, **environment}
    )


STAND_INS = {
    "torchrun": "#!/bin/sh\nenv -0 >environment\n",
    "srun": '#!/bin/sh\nexec "$@"\n',
    "scontrol": "#!/bin/sh\necho node1\n",
}
FLIGHT_RECORDER = {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1", "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000"}
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
BETWEEN_NODES = ["launch_many_nodes.sh", "launch_slurm.sh"]


def environment_of_workers(folder, launcher, **given):
    """FLIGHT_RECORDER and INTERFACES in the environment of the torchrun that `launcher` starts if a user sets `given`:
    the values that have arrived."""
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    watched = (*FLIGHT_RECORDER, *INTERFACES)
    inherited = {name: value for name, value in os.environ.items() if name not in (*watched, "IFACE")}
    job = {"GPUS": "1", "HEAD": "node1", "NODES": "2", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    job |= {"SLURM_JOB_NODELIST": "node[1-2]", "PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}
    command = ["bash", str(EXAMPLES / launcher), "--save", "run"]
    subprocess.run(command, cwd=folder, env={**inherited, **job, **given}, check=True)
    pairs = (entry.partition("=") for entry in (folder / "environment").read_text().split("\0"))
    return {name: value for name, _, value in pairs if name in watched}


@pytest.mark.parametrize("launcher", ["launch_one_node.sh", *BETWEEN_NODES])
def test_launchers_turn_nccls_flight_recorder_on(launcher, tmp_path):
    """A user's own values win. Without IFACE no interface is set, not even to an empty name."""
    assert environment_of_workers(tmp_path, launcher) == FLIGHT_RECORDER
    own = {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0", "TORCH_NCCL_TRACE_BUFFER_SIZE": "50", "GLOO_SOCKET_IFNAME": "eth7"}
    assert environment_of_workers(tmp_path, launcher, **own) == own


@pytest.mark.parametrize("launcher", BETWEEN_NODES)
def test_launchers_hand_the_interface_on(launcher, tmp_path):
    """To gloo and NCCL, of which each may have its own."""
    found = environment_of_workers(tmp_path, launcher, IFACE="ib0")
    assert found == FLIGHT_RECORDER | dict.fromkeys(INTERFACES, "ib0")
    for name in INTERFACES:
        found = environment_of_workers(tmp_path, launcher, IFACE="ib0", **{name: "eth7"})
        assert found == FLIGHT_RECORDER | dict.fromkeys(INTERFACES, "ib0") | {name: "eth7"}


def test_torch_knows_the_flight_recorders_variables():
    """By the headers of the torch installed: a name that it has dropped would be set in vain."""
    headers = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "distributed" / "c10d"
    text = "".join(path.read_text() for path in headers.glob("*.hpp"))
    assert [name for name in FLIGHT_RECORDER if f'"{name}"' not in text] == []


DEVICE_SECONDS = 1.0
"""seconds that a step's kernels take after it has returned; a step of the small network takes a fraction of that"""


def dry_run_of_an_asynchronous_device(rank, world_size, argv):
    """A dry run whose steps return at once, while the device is busy with them until it is waited for."""
    from megatron_alum.compat import enable_cpu
    from megatron_alum.training import dry_run

    assert enable_cpu()
    launched, step, synchronize = [], dry_run.train_step, torch.cuda.synchronize

    def launch(*args):
        launched.append(DEVICE_SECONDS)
        return step(*args)

    def wait(*_args):
        time.sleep(sum(launched))
        launched.clear()

    torch.cuda.synchronize, dry_run.train_step = wait, launch
    try:
        return dry_run_output(rank, world_size, argv)
    finally:
        torch.cuda.synchronize, dry_run.train_step = synchronize, step


def test_a_dry_run_times_the_device_and_not_its_launches(prefix):
    argv = arguments(prefix, None, dry_run=True, global_batch_size=2, alum_alpha=0)
    (printed,) = run_ranks(1, dry_run_of_an_asynchronous_device, argv)
    (seconds,) = re.findall(r"([\d.]+) seconds? each here", printed)
    assert DEVICE_SECONDS <= float(seconds) < 2 * DEVICE_SECONDS, printed
