"""The demo: its embedded corpus and its failing stages quickly; the whole of it among the slow tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples import demo as module
from examples.demo import STOP_AFTER, TRAIN_ITERS, Demo

ROOT = Path(__file__).resolve().parents[1]


def run_demo(*arguments, timeout=120):
    command = [sys.executable, ROOT / "examples" / "demo.py", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, "COLUMNS": "100"}
    )


def test_the_embedded_corpus_is_one_article_a_line(tmp_path):
    demo = Demo([], tmp_path, None)
    demo.write_corpus()
    rows = [json.loads(line) for line in demo.corpus[0].read_text().splitlines()]
    assert len(rows) > 70 and {"id", "title", "text"} == set(rows[0])
    assert "statement" in next(row["text"] for row in rows if row["id"] == "assert")
    assert next(stage.name for stage in demo.stages()) == "write the embedded corpus"


def test_a_given_corpus_is_taken_as_it_is(tmp_path):
    demo = Demo([tmp_path / "mine.txt"], tmp_path, None)
    assert demo.corpus == [tmp_path / "mine.txt"]
    assert next(stage.name for stage in demo.stages()) == "train a vocabulary"


def test_a_failing_stage_ends_the_demo_with_its_name(tmp_path):
    done = run_demo("--corpus", tmp_path / "absent.txt", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'error: the stage "train a vocabulary" failed with exit status 2.'
    assert "absent.txt" in done.stderr  # the tool's own error comes before
    assert "[2/" not in done.stdout


def test_stages_run_on_the_cpu_on_a_machine_with_gpus_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = tmp_path / "seen"
    program = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    module._python("-c", program, seen)
    assert seen.read_text() == ""


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    done = run_demo("--output", tmp_path, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, TRAIN_ITERS + 1))
    assert {row["phase"] for row in rows[:STOP_AFTER]} == {"standard", "alum"}
    assert rows[-1]["lm_loss"] < rows[0]["lm_loss"] - 2
    assert (tmp_path / "run" / f"iter_{STOP_AFTER:07d}").is_dir()  # stopped there, and resumed from it
    assert Image.open(tmp_path / "curves.png").size[0] >= 800
    output = done.stdout
    assert "verified: " in output and output.count("%  ") == 5  # five predictions
    assert all(str(tmp_path / name) in output.split("Done in")[1] for name in ("run", "model", "curves.png"))
