"""AlumConfig: the paper's presets and, for every bad value, an error that names the flag."""

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
        ("num_ascent_steps", -1),
        ("head_chunk_rows", -1),
        ("projection", "l2"),
        ("perturb", "letters"),
        ("dropout", "none"),
        ("inner_divergence", "js"),
        ("inner_reduction", "token"),
        ("ascent", "free"),
    ],
)
def test_bad_values_name_the_flag(name, value):
    with pytest.raises(ValueError, match=f"--alum-{name.replace('_', '-')} must be .*instead"):
        AlumConfig(**{name: value})


def test_the_level_is_a_word_or_the_layer():
    assert [AlumConfig().level, AlumConfig(perturb="encoder_input").level] == ["word", "encoder_input"]
    assert AlumConfig(perturb="layer", perturb_layer=8).level == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perturb": "layer"}, "--alum-perturb-layer must be given with --alum-perturb layer"),
        ({"perturb_layer": 2}, "--alum-perturb must be layer with --alum-perturb-layer 2, but is word"),
        ({"perturb": "layer", "perturb_layer": 0}, "--alum-perturb-layer must be at least 1"),
        ({"num_ascent_steps": 0, "step_size": 0.1}, "--alum-step-size must be 0.001 with --alum-num-ascent-steps 0"),
        ({"num_ascent_steps": 0, "epsilon": 0.1}, "--alum-epsilon must be 1e-05 with --alum-num-ascent-steps 0"),
        (
            {"num_ascent_steps": 0, "projection": "normalize"},
            "--alum-projection must be clamp with --alum-num-ascent-steps 0, .* Leave --alum-projection out",
        ),
        ({"num_ascent_steps": 0, "inner_divergence": "symmetric"}, "--alum-inner-divergence must be kl with"),
        ({"num_ascent_steps": 0, "inner_reduction": "batch"}, "--alum-inner-reduction must be sample with"),
        ({"projection": "normalize", "epsilon": 0.1}, "--alum-epsilon must be 1e-05 with --alum-projection normalize"),
        ({"ascent": "label", "inner_divergence": "symmetric"}, "--alum-inner-divergence must be kl with --alum-ascent"),
        ({"ascent": "label", "detach_targets": False}, "--alum-detach-targets must be true with --alum-ascent label"),
        ({"ascent": "label", "head_chunk_rows": 8}, "--alum-head-chunk-rows must be 0 with --alum-ascent label"),
        ({"ascent": "label", "num_ascent_steps": 0, "nsp": False}, "--alum-nsp must be true with --alum-num-ascent-st"),
        ({"ascent": "label", "num_ascent_steps": 0, "dropout": "shared"}, "--alum-dropout must be independent with"),
        ({"ascent": "label", "alpha": 3.0}, "--alum-alpha must be 10.0 with --alum-ascent label"),
        ({"dropout": "shared", "batch_fraction": 0.5}, "--alum-batch-fraction must be 1 with --alum-dropout shared"),
    ],
)
def test_a_setting_without_effect_is_an_error_that_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        AlumConfig(**changes)


def test_compatible_options_are_accepted():
    AlumConfig(num_ascent_steps=0, noise_std=0.1, perturb="encoder_input", dropout="shared", detach_embeddings=True)
    AlumConfig(num_ascent_steps=0, ascent="label", perturb="layer", perturb_layer=3)
    AlumConfig(ascent="label", alpha=0.0, nsp=False, inner_reduction="batch", batch_fraction=0.5)
