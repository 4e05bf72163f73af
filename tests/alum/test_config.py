"""AlumConfig: the paper's presets and an error that names the flag for every bad value."""

import pytest

from megatron_alum.config.alum import AlumConfig


def test_defaults_are_the_papers_pretraining_setting():
    config = AlumConfig()
    assert config == AlumConfig.pretraining()
    paper = {
        "alpha": 10,
        "epsilon": 1e-5,
        "step_size": 1e-3,
        "noise_std": 1e-5,
        "num_ascent_steps": 1,
        "start_fraction": 0.5,
    }
    assert {name: getattr(config, name) for name in paper} == paper


def test_finetuning_preset():
    config = AlumConfig.finetuning(epsilon=1e-2)
    assert (config.alpha, config.start_fraction, config.epsilon, config.step_size) == (1.0, 0.0, 1e-2, 1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_fraction", 1.5),
        ("start_fraction", -0.1),
        ("batch_fraction", 0.0),
        ("alpha", float("nan")),
        ("epsilon", -1.0),
        ("step_size", float("inf")),
        ("noise_std", -1e-9),
        ("num_ascent_steps", 0),
        ("head_chunk_rows", -1),
        ("projection", "l2"),
        ("perturb", "letters"),
        ("dropout", "none"),
        ("inner_divergence", "js"),
    ],
)
def test_bad_values_name_the_flag(name, value):
    with pytest.raises(ValueError, match=f"--alum-{name.replace('_', '-')} must be .*instead"):
        AlumConfig(**{name: value})
