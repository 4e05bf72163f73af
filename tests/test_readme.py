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


def test_the_file_tour_names_files_that_exist():
    tour = [*re.findall(r"^\| `(.*?)` \|", README, flags=re.MULTILINE), "megatron_alum/ops/", "csrc/README.md"]
    missing = [path for path in tour if "`" not in path and not (ROOT / path).exists()]
    assert not missing
