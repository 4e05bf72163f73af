"""gpu-check without a GPU: it refuses, names rows that its tables have, keeps to its time, distinguishes failed from
not finished, and copies everything it needs from the tree."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import bench_ops, bench_step, contestants, gpu_check
from benchmarks.gpu import budget, promises
from benchmarks.gpu.budget import Check
from tests.helpers.warm import run_script


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
    assert names == [bench_step.STOCK, "standard", "alum K=1", "alum late layer"]


def test_the_ops_it_asks_for_are_flags_of_the_op_table(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_ops.py", *gpu_check.OPS])
    arguments = bench_ops.parse_arguments()
    assert (arguments.device, arguments.rows, arguments.tokens) == ("cuda", 8192, 65536)
    found = contestants.divergence_contestants(3, 8, torch.float32, torch.device("cpu"), quick=True)
    assert promises.ROW_KERNEL in found
    found[promises.ROW_KERNEL]()


def memory(peak, estimate):
    return {"peak_memory_mb": peak, "estimated_memory_mb": estimate}


def test_promises_from_hand_made_tables():
    ops = [
        {"op": "symmetric_kl, v", "contestant": promises.ROW_KERNEL, "dtype": d, "against_floor": a, "speedup": s}
        for d, a, s in (("float32", "9", "1"), ("bfloat16", "1.25", "12"))
    ]
    ops.append({**ops[1], "op": "perturb_embeddings", "contestant": "ours", "against_floor": "2"})
    steps = [
        {"step": "standard", "tflops": "395.6", "ratio_to_stock": "0.5", "ratio_to_standard": "1", **memory("9", "10")},
        {"step": "alum K=1", "tflops": "300", "ratio_to_stock": "1.4", "ratio_to_standard": "2.8", **memory("6", "5")},
    ]
    found = promises.promises(ops, steps)
    assert [promise.measured for promise in found] == pytest.approx([0.8, 12.0, 0.5, 0.4, 2.0, 2.8, 0.9, 1.2])
    assert [promise.met for promise in found] == ["yes", "yes", "no", "yes", "yes", "no", "yes", "no"]
    assert {promise.met for promise in promises.promises([], [])} == {"unknown"}
    without_stock = [
        {"step": "standard", "tflops": "395.6", "ratio_to_stock": "", "ratio_to_standard": "", **memory("9", "")}
    ]
    assert [promise.met for promise in promises.promises(ops, without_stock)][3:] == ["yes", *["unknown"] * 4]


def test_a_command_that_hangs_gives_no_answer():
    assert budget.answers([sys.executable, "-c", "pass"], seconds=60)
    assert budget.answers([sys.executable, "-c", "raise SystemExit(1)"], seconds=60) is False
    assert budget.answers([sys.executable, "-c", "import time; time.sleep(60)"], seconds=1) is None


def test_tables_of_an_older_run_do_not_count(tmp_path):
    table = tmp_path / "old.csv"
    table.write_text("step,tflops\nstandard,1\n")
    written = table.stat().st_mtime
    assert promises.read_table(table, since=written - 1) == [{"step": "standard", "tflops": "1"}]
    assert promises.read_table(table, since=written + 1) == []


def test_report_writes_one_row_a_promise(tmp_path, capsys):
    found = [promises.Promise("speed", 8.0, 12.0), promises.Promise("cost", 2.75, None, at_most=True)]
    promises.report(tmp_path / "gpu.csv", found, {"device": "GPU"})
    with (tmp_path / "gpu.csv").open(newline="") as stream:
        rows = [(r["promise"], r["asked"], r["measured"], r["met"], r["device"]) for r in csv.DictReader(stream)]
    assert rows == [("speed", ">= 8", "12", "yes", "GPU"), ("cost", "<= 2.75", "", "unknown", "GPU")]
    assert "unknown" in capsys.readouterr().out


def test_steps_and_wheels_are_found_in_the_copy(tmp_path, capfd):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "name = 'carried'\n")
        wheel.writestr("carried-1.data/scripts/program", "#!/bin/sh\necho from a wheel\n")
    check = Check(tmp_path, "gpu")
    assert not check.has("carried") and check.has("torch")
    budget.unpack_wheels(tmp_path / "wheels", tmp_path / "site")
    assert check.has("carried")
    output = check.run("import", [sys.executable, "-c", "import carried; print(carried.name)"], seconds=60)
    assert output == "carried\n" and check.failed == []
    assert check.run("program", ["sh", "-c", "program"], seconds=60) == "from a wheel\n"


def test_a_step_that_hangs_is_not_finished_and_no_failure(tmp_path, capsys):
    check = Check(tmp_path, "gpu")
    assert check.run("bad", [sys.executable, "-c", "raise SystemExit(3)"], seconds=60) is None
    assert check.run("late", [sys.executable, "-c", "import time; time.sleep(60)"], seconds=1) is None
    assert (check.failed, check.unfinished, check.skipped) == (["bad"], ["late"], [])
    shown = capsys.readouterr().out
    assert "stopped: it took longer than 1 s" in shown and re.search(r"=== late: NOT FINISHED in \d+ s", shown)


@pytest.mark.parametrize(
    ("failed", "unfinished", "skipped", "unmet", "unknown", "code"),
    [
        ([], [], [], 0, 0, 0),
        (["ops"], [], [], 0, 0, 1),
        ([], [], [], 1, 0, 1),
        (["ops"], ["test"], ["training"], 2, 3, 1),
        ([], ["sanitize"], [], 0, 0, 3),
        ([], [], ["training"], 0, 0, 3),
        ([], [], [], 0, 1, 3),
    ],
)
def test_exit_codes(tmp_path, failed, unfinished, skipped, unmet, unknown, code):
    check = Check(tmp_path, "gpu", failed=failed, unfinished=unfinished, skipped=skipped)
    assert check.exit_code(unmet, unknown) == code


STANDS_FOR_A_STEP = """
import sys, time
name, mode, table = sys.argv[1:]
print(name, flush=True)
columns = "step,tflops,ratio_to_stock,ratio_to_standard,peak_memory_mb,estimated_memory_mb"
if mode == "write": open(table, "w").write(columns + "\\nstandard,400,0.5,1,9,10\\n")
if mode == "fail": sys.exit(1)
"""


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """The whole check with small commands in place of its steps; {name: what its command does}."""
    modes: dict[str, str] = {}
    monkeypatch.setattr(Check, "results", lambda self, suffix="": tmp_path / f"{self.label}{suffix}.csv")
    monkeypatch.setattr(Check, "has", lambda self, module: modes.get(module) != "missing")
    monkeypatch.setattr(gpu_check, "copy_tree", lambda folder: None)
    monkeypatch.setattr(gpu_check, "build", lambda check, capability: modes.get("build") != "fail")
    monkeypatch.setattr(gpu_check, "sanitize", lambda check, tests: print("sanitize"))
    real_parts = gpu_check.parts

    def small_parts(check, data):
        step = [sys.executable, "-c", STANDS_FOR_A_STEP]
        return [
            (name, [*step, name, modes.get(name, "pass"), str(check.results("-steps"))], 20)
            for name, *_ in real_parts(check, data)
        ]

    monkeypatch.setattr(gpu_check, "parts", small_parts)
    return modes


def order(shown):
    return [
        line.split(":")[0].removeprefix("=== ")
        for line in shown.splitlines()
        if line.startswith("=== ") and "-c" in line
    ]


def test_most_important_first_and_tables_as_they_come(stand_ins, tmp_path, capsys):
    stand_ins |= {"steps": "write", "graphs": "fail"}
    check = Check(tmp_path / "copy", "gpu")
    check.folder.mkdir()
    assert gpu_check.run_all(check, "9.0", {"device": "GPU"}, "shards") == 1
    shown = capsys.readouterr().out
    assert order(shown) == ["test", "steps", "training", "sync", "graphs", "attention", "compile", "ops", "shared"]
    after_steps = shown.index("standard step, times faster than stock")
    assert shown.index("=== steps: passed") < after_steps < shown.index("=== training:"), "promises as soon as known"
    assert "failed: graphs\n" in shown and "promises not kept: 0, not measured: 5" in shown


def test_without_shards_or_modules_the_rest_is_run(stand_ins, tmp_path, capsys):
    stand_ins |= {"megatron": "missing"}
    check = Check(tmp_path / "copy", "gpu")
    check.folder.mkdir()
    assert gpu_check.run_all(check, "9.0", {}, None) == 1
    shown = capsys.readouterr().out
    assert (check.failed, check.skipped) == (["steps"], ["training", "shared"])
    assert order(shown) == ["test", "sync", "graphs", "attention", "compile", "ops"]
    assert "=== steps: FAILED, megatron missing; carry the wheels in .whl (see --help)" in shown


def test_nothing_runs_after_a_failed_build_nor_when_the_time_is_spent(stand_ins, tmp_path, capsys):
    stand_ins |= {"build": "fail"}
    check = Check(tmp_path / "copy", "gpu")
    check.folder.mkdir()
    assert gpu_check.run_all(check, "9.0", {}, "shards") == 3 and order(capsys.readouterr().out) == []
    stand_ins.clear()
    late = Check(tmp_path / "copy", "gpu")
    late.began -= budget.SECONDS_IN_ALL
    assert gpu_check.run_all(late, "9.0", {}, "shards") == 3
    assert order(capsys.readouterr().out) == [] and late.skipped[:3] == ["test", "steps", "training"]


def test_a_sanitizer_that_hangs_or_refuses_is_not_finished(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for script in ("exec sleep 60", "exit 1"):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        check = Check(tmp_path, "gpu")
        check.began -= budget.SECONDS_IN_ALL - budget.LEAST_SECONDS - 1
        monkeypatch.setattr(check, "seconds_for", lambda name, wanted: 1.0)
        gpu_check.sanitize(check, ["tests"])
        assert (check.failed, check.unfinished) == ([], ["sanitize"])


def test_the_build_says_that_ninja_is_missing_and_gets_more_time(tmp_path, monkeypatch, capsys):
    (tmp_path / "pyproject.toml").touch()
    limits = []
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(Check, "run", lambda self, name, command, *, seconds, **more: limits.append(seconds))
    (tmp_path / "copy" / "site" / "bin").mkdir(parents=True)
    check = Check(tmp_path / "copy", "gpu")
    monkeypatch.setenv("PATH", "")
    gpu_check.build(check, "9.0")
    assert capsys.readouterr().out.startswith("ninja is missing (carry its wheel in .whl)")
    ninja = tmp_path / "copy" / "site" / "bin" / "ninja"
    ninja.touch(mode=0o755)
    gpu_check.build(check, "9.0")
    assert capsys.readouterr().out == "" and limits[0] > limits[1]


def test_a_step_without_time_left_is_skipped_and_no_failure(tmp_path, capsys):
    check = Check(tmp_path, "gpu")
    assert check.seconds_for("short", 60) == 60
    check.began -= budget.SECONDS_IN_ALL - budget.LEAST_SECONDS - 5
    assert budget.LEAST_SECONDS < check.seconds_for("cut", 60) < 60
    check.began -= 10
    assert check.run("late", [sys.executable, "-c", "raise SystemExit(3)"], seconds=60) is None
    assert (check.failed, check.skipped) == ([], ["late"])
    assert capsys.readouterr().out == "\n=== late: skipped, no time left\n"


def test_a_failed_build_shows_everything_and_ends_with_its_first_error(tmp_path, capsys):
    noise = "ptxas info : Used 80 registers\n" * 1000
    (tmp_path / "output").write_text(f"the beginning\n{noise}FAILED: kernel.o\nkernel.cu(3): error: no\n{noise}")
    check = Check(tmp_path, "gpu")
    show = "import sys; print(open('output').read()); sys.exit(len(sys.argv) - 1)"
    assert check.run("build", [sys.executable, "-c", show, "fail"], seconds=60) is None
    shown = capsys.readouterr().out
    assert "\nthe beginning\n" in shown and shown.count("kernel.cu(3): error: no") == 2
    end = shown[-budget.SHOWN - 100 :]
    from_first = "\n=== from its first error on:\nFAILED: kernel.o\nkernel.cu(3): error: no\n"
    assert re.search(rf"=== build: FAILED in \d+ s{re.escape(from_first)}", end)
    assert check.run("build", [sys.executable, "-c", show], seconds=60) is not None
    assert len(capsys.readouterr().out) < budget.SHOWN + 1000
    assert budget.first_error("1 failed") == ""


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
    monkeypatch.setattr(Check, "results", lambda self, suffix="": tmp_path / f"{self.label}{suffix}.csv")
    check, out = Check(tmp_path, "gpu"), tmp_path / "out"
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
        "megatron_alum/data/sampling/batch.py",
    ):
        assert (tmp_path / name).is_file()
    assert not (tmp_path / "csrc" / "data").exists(), "the sampler needs pybind11, and no GPU"
    assert not list(tmp_path.rglob("*.so"))
    assert not (tmp_path / "pyproject.toml").exists(), "copied after the build"


def test_help_names_every_wheel_that_may_be_missing():
    assert gpu_check.__doc__ is not None
    for wheel in ("megatron-core==0.16.1", "pytest", "pluggy", "iniconfig", "pygments", "hypothesis", "ninja"):
        assert wheel in gpu_check.__doc__
    assert importlib.util.find_spec("pluggy") and importlib.util.find_spec("iniconfig"), "what pytest imports"
    assert Path(gpu_check.__file__).is_file()
