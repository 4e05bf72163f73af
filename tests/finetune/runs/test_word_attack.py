"""Word substitution with the real TextAttack library, where it is installed, against a model that one word decides."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.finetune.runs.test_tools import encoder, flags, run_tool, sentiment  # noqa: F401  fixtures

ROOT = Path(__file__).parents[3]
needs_textattack = pytest.mark.skipif(
    importlib.util.find_spec("textattack") is None, reason="no TextAttack: pip install textattack"
)


@needs_textattack
@pytest.mark.filterwarnings("ignore")
def test_deepwordbug_fools_a_word_model(encoder, sentiment, tmp_path, monkeypatch):  # noqa: F811
    """A changed character makes the one decisive word unknown; NLTK's stop words are the only data the recipe needs."""
    import nltk

    stop_words = tmp_path / "nltk_data" / "corpora" / "stopwords"
    stop_words.mkdir(parents=True)
    (stop_words / "english").write_text("the\na\nof\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    monkeypatch.setenv("TA_CACHE_DIR", str(tmp_path / "cache"))
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "out"), "--seeds", 1)
    run_tool(
        *("attack", "--model", tmp_path / "out" / "model", "--task", "sst2", "--data-dir", sentiment),
        *("--output", tmp_path / "attack", "--word-attack", "deepwordbug", "--max-eval-samples", 16, "--radii", 0),
    )
    rows = [json.loads(line) for line in (tmp_path / "attack" / "attack.jsonl").read_text().splitlines()]
    (clean,), (attacked,) = ([row for row in rows if row["attack"] == name] for name in ("pgd", "deepwordbug"))
    assert attacked["clean_accuracy"] == pytest.approx(clean["accuracy"]) and attacked["clean_accuracy"] > 0.9
    assert attacked["robust_accuracy"] < attacked["clean_accuracy"]


@needs_textattack
@pytest.mark.filterwarnings("ignore")
def test_missing_stop_words_are_one_sentence(encoder, sentiment, tmp_path):  # noqa: F811
    """In a process of its own, since the library looks for them when it is imported."""
    run_tool("finetune", *flags(encoder, sentiment, tmp_path / "out"), "--seeds", 1)
    command = [sys.executable, "tools/attack.py", "--model", tmp_path / "out" / "model", "--task", "sst2"]
    command += [
        "--data-dir",
        sentiment,
        "--output",
        tmp_path / "attack",
        "--word-attack",
        "deepwordbug",
        "--radii",
        "0",
    ]
    environment = {**os.environ, "NLTK_DATA": str(tmp_path), "HOME": str(tmp_path), "TA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--word-attack deepwordbug must find its data, but does not" in done.stderr
