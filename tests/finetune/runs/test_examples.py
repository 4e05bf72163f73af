"""Every shipped fine-tuning recipe parses with the command that stands in its head."""

import shlex
from pathlib import Path

import pytest

from megatron_alum.config.cli import parse_config
from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.finetune.benchmarks.tasks import BATCH_SIZES, LEARNING_RATES
from megatron_alum.finetune.methods.presets import method_of
from megatron_alum.finetune.runs.grid import grid

RECIPES = sorted((Path(__file__).parents[3] / "examples").glob("finetune*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe_parses(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parents[1])
    (command,) = [line for line in recipe.read_text().splitlines() if line.startswith("# python tools/finetune.py")]
    config = parse_config(FinetuneConfig, shlex.split(command)[3:])
    assert method_of(config).name in recipe.read_text()
    assert len(list(grid(config))) >= 1


def test_paper_grid_is_the_papers():
    config = parse_config(FinetuneConfig, ["--model", "m", "--task", "rte", "--output", "o", "--paper-grid"])
    points = {(point.learning_rate, point.batch_size) for point in grid(config)}
    assert points == {(rate, size) for rate in LEARNING_RATES for size in BATCH_SIZES} and len(points) == 12


def test_method_flags_change_the_preset():
    arguments = [
        "--model",
        "m",
        "--task",
        "rte",
        "--output",
        "o",
        "--alum",
        "--alum-epsilon",
        "0.5",
        "--alum-num-ascent-steps",
        "3",
    ]
    config = method_of(parse_config(FinetuneConfig, arguments)).config
    assert (config.epsilon, config.num_ascent_steps, config.alpha) == (0.5, 3, 1.0)
