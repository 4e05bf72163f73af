"""Learning rate and phase by hand: 10 iterations, 20 % warm-up, peak 1."""

import pytest

from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.objective.schedule import learning_rate, phase_of


def config_of(words):
    base = "--data-path x --save y --model-size tiny --train-iters 10 --lr 1 --lr-warmup-fraction 0.2 "
    return parse_config(RunConfig, (base + words).split())


def test_warm_up_peak_and_decay():
    rates = [learning_rate(t, config_of("")) for t in range(1, 11)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(10, config_of("--min-lr 0.2")) == pytest.approx(0.2 + 0.8 / 8)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("", 6),
        ("--alum-start-fraction 0", 1),
        ("--alum-start-fraction 1", 11),
        ("--alum-start-fraction 0.34", 4),
        ("--alum-alpha 0", 11),
    ],
)
def test_the_adversarial_phase_begins(words, first):
    config = config_of(words)
    assert config.first_alum_iteration == first
    assert [phase_of(t, config) for t in (first - 1, first)] == ["standard", "alum"]
