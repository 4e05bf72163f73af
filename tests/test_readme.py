"""The README: its library example trains, and it names files that exist. Its commands: tests/docs."""

import re
from pathlib import Path

from tests.finetune import toy

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_library_example_trains(tmp_path, monkeypatch):
    """The README's own lines, on a toy model in place of models/alum-base and a data set of 16 examples."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "AlumTrainer" in b]
    toy.tiny_model("classification", num_labels=2).save_pretrained(tmp_path / "models" / "alum-base")
    monkeypatch.chdir(tmp_path)
    two_classes = [{**example, "labels": example["labels"] % 2} for example in toy.examples("classification")]
    names = {"train_dataset": two_classes}
    exec(compile(block, "README.md", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step > 0 and trainer.method.name == "alum"
    assert trainer.statistics["alum_kl"] > 0


def paths_in(text):
    """Everything in backticks that is the path of a file or folder, except what `make docs` writes."""
    words = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text)
    named = [word for word in words if "/" in word or word.endswith((".csv", ".md", ".py", ".toml", ".txt", ".yaml"))]
    return [path for path in named if not path.startswith("build/")]


def missing(text):
    return [path for path in paths_in(text) if not (ROOT / path).exists()]


def test_the_paths_it_names_exist():
    assert {"megatron_alum/alum/ascent.py", "tests/golden/training", "constraints.txt"} <= set(paths_in(README))
    assert missing(README) == []


def test_a_path_that_does_not_exist_is_seen():
    text = "see `megatron_alum/absent.py`, `absent.csv`, `docs/absent/`, `README.md`, `--flag`, `a b/c` and `make docs`"
    assert missing(text) == ["megatron_alum/absent.py", "absent.csv", "docs/absent/"]
