"""tools/doctor.py as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _run(**environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "doctor.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])},
    )


def test_prints_everything_with_advice_and_runs_a_step(tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("'''Not NVIDIA's.'''")  # megatron-core imports it where it can
    process = _run(PYTHONPATH=str(tmp_path))
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    for name in (
        "python",
        "torch",
        "megatron-core",
        "CUDA",
        "apex",
        "fused ops",
        "sampler",
        "attention",
    ):
        assert any(line.startswith(name) for line in lines), name
    assert any("not NVIDIA's (ignored)" in line for line in lines)
    assert any(line.strip().startswith("-> pip uninstall apex") for line in lines)
    assert "one step of a tiny BERT ran" in lines[-1]
    assert process.returncode == 0


def test_without_torch_it_says_what_to_install():
    """-S leaves out the installed packages."""
    command = [sys.executable, "-S", str(ROOT / "tools" / "doctor.py")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1 and process.stderr.startswith("torch  absent\n")
    assert "-> pip install torch==2.13.0" in process.stderr and "Traceback" not in process.stderr


def test_a_wrong_megatron_core_is_named_and_fails(tmp_path):
    (tmp_path / "megatron_core-0.15.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: megatron-core\nVersion: 0.15.0\n"
    (tmp_path / "megatron_core-0.15.0.dist-info" / "METADATA").write_text(metadata)
    process = _run(PYTHONPATH=str(tmp_path))
    assert "-> pip install megatron-core==0.16.1" in process.stdout
    assert "self-test" in process.stdout
    assert "failed: ValueError: megatron-core must be 0.16.1 to 0.19.2" in process.stdout
    assert process.returncode == 1
