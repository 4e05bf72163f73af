"""gpu-check where there is no GPU: it refuses, knows its own tables, and copies all that it needs of the tree."""

import csv
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import bench_step
from tests.helpers.warm import run_script
from tools import bench_ops, gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu-check")
def test_refuses_a_machine_without_gpu_in_one_sentence(tmp_path):
    done = run_script(gpu_check.__file__)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: gpu-check must run on a machine with a GPU and nvcc, but torch ")
    assert done.stderr.endswith(" sees no GPU.\n")


def test_the_steps_it_asks_for_are_rows_of_the_step_table():
    arguments = bench_step.parse_arguments([*gpu_check.STEPS, *gpu_check.ROWS_OF_STEPS])
    assert (arguments.model_size, arguments.seq_length, arguments.bf16) == ("base", 512, True)
    names = bench_step.chosen(arguments.only)
    assert names == [bench_step.STOCK, "standard", "alum K=1"]


def test_the_ops_it_asks_for_are_flags_of_the_op_table(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_ops.py", *gpu_check.OPS])
    arguments = bench_ops.parse_arguments()
    assert (arguments.device, arguments.rows, arguments.tokens) == ("cuda", 8192, 65536)
    contestants = bench_ops.divergence_contestants(3, 8, torch.float32, torch.device("cpu"), quick=True)
    assert gpu_check.ROW_KERNEL in contestants
    contestants[gpu_check.ROW_KERNEL]()


def test_promises_from_hand_made_tables():
    ops = [
        {"op": "symmetric_kl, v", "contestant": gpu_check.ROW_KERNEL, "dtype": d, "against_floor": a, "speedup": s}
        for d, a, s in (("float32", "9", "1"), ("bfloat16", "1.25", "12"))
    ]
    ops.append({**ops[1], "op": "perturb_embeddings", "contestant": "ours", "against_floor": "2"})
    steps = [
        {"step": "standard", "tflops": "395.6", "ratio_to_stock": "0.5", "ratio_to_standard": "1"},
        {"step": "alum K=1", "tflops": "300", "ratio_to_stock": "1.4", "ratio_to_standard": "2.8"},
    ]
    found = gpu_check.promises(ops, steps)
    assert [promise.measured for promise in found] == pytest.approx([0.8, 12.0, 0.5, 0.4, 2.0, 2.8])
    assert [promise.met for promise in found] == ["yes", "yes", "no", "yes", "yes", "no"]
    assert {promise.met for promise in gpu_check.promises([], [])} == {"unknown"}
    without_stock = [{"step": "standard", "tflops": "395.6", "ratio_to_stock": "", "ratio_to_standard": ""}]
    assert [promise.met for promise in gpu_check.promises(ops, without_stock)][3:] == ["yes", "unknown", "unknown"]


def test_a_command_that_hangs_is_no_answer():
    assert gpu_check.answers([sys.executable, "-c", "pass"], seconds=60)
    assert not gpu_check.answers([sys.executable, "-c", "raise SystemExit(1)"], seconds=60)
    assert not gpu_check.answers([sys.executable, "-c", "import time; time.sleep(60)"], seconds=1)


def test_tables_of_an_older_run_do_not_count(tmp_path):
    table = tmp_path / "old.csv"
    table.write_text("step,tflops\nstandard,1\n")
    written = table.stat().st_mtime
    assert gpu_check.read_table(table, since=written - 1) == [{"step": "standard", "tflops": "1"}]
    assert gpu_check.read_table(table, since=written + 1) == []


def test_report_writes_one_row_a_promise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.Check, "results", lambda self, suffix="": tmp_path / f"{self.label}{suffix}.csv")
    check = gpu_check.Check(tmp_path, "gpu")
    found = [gpu_check.Promise("speed", 8.0, 12.0), gpu_check.Promise("cost", 2.75, None, at_most=True)]
    gpu_check.report(check, found, {"device": "GPU"})
    with (tmp_path / "gpu.csv").open(newline="") as stream:
        rows = [(r["promise"], r["asked"], r["measured"], r["met"], r["device"]) for r in csv.DictReader(stream)]
    assert rows == [("speed", ">= 8", "12", "yes", "GPU"), ("cost", "<= 2.75", "", "unknown", "GPU")]
    assert "unknown" in capsys.readouterr().out


def test_steps_and_wheels_are_found_in_the_copy(tmp_path, capfd):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "name = 'carried'\n")
    check = gpu_check.Check(tmp_path, "gpu")
    assert not check.has("carried") and check.has("torch")
    gpu_check.unpack_wheels(tmp_path / "wheels", tmp_path / "site")
    assert check.has("carried")
    output = check.run("import", [sys.executable, "-c", "import carried; print(carried.name)"], seconds=60)
    assert output == "carried\n" and check.failed == []


def test_a_failed_and_a_late_step_are_noted(tmp_path, capsys):
    check = gpu_check.Check(tmp_path, "gpu")
    assert check.run("bad", [sys.executable, "-c", "raise SystemExit(3)"], seconds=60) is None
    assert check.run("late", [sys.executable, "-c", "import time; time.sleep(60)"], seconds=1) is None
    assert check.failed == ["bad", "late"]
    assert "stopped: it took longer than 1 s" in capsys.readouterr().out


def test_a_step_without_time_left_is_skipped_and_no_failure(tmp_path, capsys):
    check = gpu_check.Check(tmp_path, "gpu")
    assert check.seconds_for("short", 60) == 60
    check.began -= gpu_check.SECONDS_IN_ALL - gpu_check.LEAST_SECONDS - 5
    assert gpu_check.LEAST_SECONDS < check.seconds_for("cut", 60) < 60
    check.began -= 10
    assert check.run("late", [sys.executable, "-c", "raise SystemExit(3)"], seconds=60) is None
    assert (check.failed, check.skipped) == ([], ["late"])
    assert capsys.readouterr().out == "\n=== late: skipped, no time left\n"


def test_a_failed_build_shows_everything_and_ends_with_its_first_error(tmp_path, capsys):
    noise = "ptxas info : Used 80 registers\n" * 1000
    (tmp_path / "output").write_text(f"the beginning\n{noise}FAILED: kernel.o\nkernel.cu(3): error: no\n{noise}")
    check = gpu_check.Check(tmp_path, "gpu")
    show = "import sys; print(open('output').read()); sys.exit(len(sys.argv) - 1)"
    assert check.run("build", [sys.executable, "-c", show, "fail"], seconds=60) is None
    shown = capsys.readouterr().out
    assert "\nthe beginning\n" in shown and shown.count("kernel.cu(3): error: no") == 2
    end = shown[-gpu_check.SHOWN - 100 :]
    assert "=== build: FAILED in 0 s\n=== from its first error on:\nFAILED: kernel.o\nkernel.cu(3): error: no\n" in end
    assert check.run("build", [sys.executable, "-c", show], seconds=60) is not None
    assert len(capsys.readouterr().out) < gpu_check.SHOWN + 1000
    assert gpu_check.first_error("1 failed") == ""


def test_the_sanitizer_runs_the_kernel_on_the_gpu_with_one_block_and_with_many():
    command = [sys.executable, "-m", "pytest", "tests/ops", "--device", "cuda", "--collect-only", "-q"]
    done = subprocess.run([*command, "-k", gpu_check.SANITIZED], cwd=gpu_check.ROOT, capture_output=True, text=True)
    chosen = [line for line in done.stdout.splitlines() if "::" in line]
    assert {name.split("::")[0] for name in chosen} == {
        f"tests/ops/test_{name}.py" for name in ("divergence", "perturbation", "wide_rows")
    }
    assert len(chosen) <= 40 and not any("reference" in name for name in chosen)
    text = (gpu_check.ROOT / "csrc" / "ops" / "cuda" / "alum_kernel.cuh").read_text()
    kernel = gpu_check.SANITIZER_FLAGS[1].removeprefix("kns=")
    assert f" {kernel}(const typename Role::Task task" in text, "the sanitizer looks at the kernel of this name alone"


def test_tables_of_this_run_are_copied_to_the_folder_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.Check, "results", lambda self, suffix="": tmp_path / f"{self.label}{suffix}.csv")
    check, out = gpu_check.Check(tmp_path, "gpu"), tmp_path / "out"
    for suffix in ("", "-ops"):
        check.results(suffix).write_text("step,tflops\nstandard,1\n")
    old = check.results("-ops").stat().st_mtime - 100
    os.utime(check.results("-ops"), (old, old))
    monkeypatch.setenv("OUT", str(out))
    gpu_check.copy_tables(check, since=old + 1)  # there is no such folder
    out.mkdir()
    gpu_check.copy_tables(check, since=old + 1)
    monkeypatch.delenv("OUT")
    gpu_check.copy_tables(check, since=old + 1)
    assert [path.name for path in out.iterdir()] == ["gpu.csv"]


def test_the_copy_holds_what_is_built_and_run(tmp_path):
    gpu_check.copy_tree(tmp_path)
    for name in (
        "csrc/ops/cuda/row_kernel.cu",
        "benchmarks/bench_step.py",
        "tests/ops/conftest.py",
        "megatron_alum/data/batch.py",
    ):
        assert (tmp_path / name).is_file()
    assert not (tmp_path / "csrc" / "data").exists(), "the sampler needs pybind11, and no GPU"
    assert not list(tmp_path.rglob("*.so"))
    assert not (tmp_path / "pyproject.toml").exists(), "copied after the build"


def test_help_names_every_wheel_that_may_be_missing():
    assert gpu_check.__doc__ is not None
    for wheel in ("megatron-core==0.16.1", "pytest", "pluggy", "iniconfig", "pygments"):
        assert wheel in gpu_check.__doc__
    assert importlib.util.find_spec("pluggy") and importlib.util.find_spec("iniconfig"), "what pytest imports"
    assert Path(gpu_check.__file__).is_file()
