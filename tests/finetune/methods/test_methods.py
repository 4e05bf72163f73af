"""The flags of the methods: each changes the training, and a flag without effect is refused."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from megatron_alum.config.cli import parse_config
from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.finetune.methods.presets import METHODS, method, method_of
from megatron_alum.finetune.methods.trainer import AlumTrainer
from tests.finetune.methods.test_trainer import arguments, assert_equal, differ, train
from tests.finetune.toy import examples, tiny_model


def parsed(*flags):
    return parse_config(FinetuneConfig, ["--model", "m", "--task", "rte", "--output", "o", *map(str, flags)])


BREGMAN = ("--method", "none", "--bregman-weight", 5.0)
FAR = ("--alum-noise-std", 0.1)  # where a step is seen
CHANGES = {  # flag and value -> the flags it is added to
    ("--freelb-num-steps", 1): ("--method", "freelb"),
    ("--freelb-step-size", 0.9): ("--method", "freelb"),
    ("--freelb-init-magnitude", 0.9): ("--method", "freelb"),
    ("--freelb-max-norm", 0.01): ("--method", "freelb"),
    ("--bregman-weight", 5.0): ("--method", "none"),
    ("--bregman-momentum", 0.1): BREGMAN,
    ("--alum-alpha", 3.0): ("--method", "r-drop"),
    ("--alum-perturb", "encoder_input"): ("--method", "r-drop"),
    ("--alum-detach-targets", "true"): ("--method", "r-drop"),
    ("--alum-epsilon", 0.5): ("--method", "smart"),
    ("--alum-num-ascent-steps", 0): (*FAR, "--method", "alum"),
    ("--alum-inner-reduction", "batch"): (*FAR, "--method", "alum", "--alum-step-size", 10, "--alum-epsilon", 1),
}


@functools.cache
def trained_with(*flags):
    """Parameters after a training with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        return train(folder, "classification", method=method_of(parsed(*flags)))[1]


@pytest.mark.parametrize(("flag", "value"), CHANGES)
def test_every_flag_changes_the_training(flag, value):
    common = CHANGES[flag, value]
    assert differ(trained_with(*common), trained_with(*common, flag, value))


@pytest.mark.parametrize("flags", sorted(set(CHANGES.values()), key=str), ids=str)
def test_the_same_flags_give_the_same_training(tmp_path, flags):
    assert_equal(train(tmp_path, "classification", method=method_of(parsed(*flags)))[1], trained_with(*flags))


def test_the_target_of_the_bregman_term_can_be_attached(tmp_path):
    flags = (*BREGMAN, "--alum-detach-targets", "false")
    results = [train(tmp_path, "classification", method=method_of(parsed(*f)))[1] for f in (BREGMAN, flags)]
    assert differ(*results)


@pytest.mark.parametrize("name", METHODS)
def test_without_flags_a_method_is_its_preset(name):
    assert method_of(parsed("--method", name)) == METHODS[name]


def test_alum_normalized_is_what_the_study_measured():
    study = Path(__file__).parents[3] / "examples" / "study" / "cpu.yaml"
    (measured,) = (
        task["original-methods"]["textbook-0.02"]
        for task in yaml.safe_load(study.read_text())["downstream"]
        if "original-methods" in task
    )
    flags = [word for name, value in measured.items() for word in (f"--{name}", value)]
    assert replace(method_of(parsed(*flags)), name="alum-normalized") == METHODS["alum-normalized"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "freelb", "--bregman-weight", 1), "--bregman-weight must be 0 with --method freelb"),
        (("--method", "smart", "--bregman-weight", -1), "--bregman-weight must be at least 0"),
        (("--method", "smart", "--bregman-momentum", 0.5), "--bregman-momentum must be given with --bregman-weight"),
        ((*BREGMAN, "--bregman-momentum", 2), "--bregman-momentum must be from 0 to 1"),
        (("--alum-epsilon", 0.5), "--alum-epsilon must be left out .* --method none"),
        (("--method", "freelb", "--alum-num-ascent-steps", 5), "--alum-num-ascent-steps must be left out"),
        (("--method", "r-drop", "--alum-epsilon", 0.5), "--alum-epsilon must be left out .* --method r-drop"),
        (("--method", "none", "--alum-detach-targets", "false"), "--alum-detach-targets must be left out"),
        (("--alum", "--freelb-num-steps", 2), "--freelb-num-steps must be left out .* --method alum"),
        (("--method", "freelb", "--freelb-num-steps", 0), "--freelb-num-steps must be at least 1"),
        (("--method", "freelb", "--freelb-step-size", "nan"), "--freelb-step-size must be at least 0 and finite"),
        (("--alum", "--alum-num-ascent-steps", -1), "--alum-num-ascent-steps must be at least 0"),
        (("--alum", "--alum-num-ascent-steps", 0, "--alum-step-size", 1), "--alum-step-size must be 0.001 with"),
        (("--alum", "--alum-perturb-layer", 1), "--alum-perturb must be layer with --alum-perturb-layer 1"),
        (("--alum", "--alum-perturb", "layer"), "--alum-perturb-layer must be given with --alum-perturb layer"),
        (("--method", "freelb", "--alum-perturb-layer", 1), "--alum-perturb"),
        (("--method", "r-drop", "--alum-inner-reduction", "batch"), "--alum-inner-reduction must be left out"),
        (
            ("--alum", "--alum-projection", "normalize", "--alum-epsilon", 1),
            "--alum-epsilon must be 1e-05 with --alum-projection normalize",
        ),
    ],
)
def test_a_flag_without_effect_or_out_of_range_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parsed(*flags)


def test_the_layer_is_named_by_two_flags():
    for name in ("alum", "smart", "r-drop"):
        flags = ("--method", name, "--alum-perturb", "layer", "--alum-perturb-layer", 1)
        assert method_of(parsed(*flags)).config.level == 1


def test_the_library_refuses_freelb_with_an_average():
    with pytest.raises(ValueError, match="`bregman_weight` must be 0 with freelb"):
        method("freelb", bregman_weight=1.0)


@pytest.mark.parametrize("name", ["alum", "smart"])
@pytest.mark.parametrize("where", ["arguments", "model"])
def test_reentrant_activation_checkpoints_are_refused(name, where):
    model, changes = tiny_model("classification"), {}
    if where == "model":
        model.gradient_checkpointing_enable({"use_reentrant": True})
    else:
        changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="must have use_reentrant=False with method"):
        AlumTrainer(model=model, args=arguments("unused", **changes), method=name)


def test_the_arguments_replace_a_reentrant_checkpoint_of_the_model():
    model = tiny_model("classification")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert AlumTrainer(model=model, args=arguments("unused", **changes), method="alum").method.ascends


@pytest.mark.parametrize(("name", "reentrant"), [("alum", False), ("r-drop", True), ("freelb", True)])
def test_other_activation_checkpoints_give_the_plain_result(tmp_path, name, reentrant):
    changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    without = lambda: tiny_model("classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # noqa: E731
    _, plain = train(tmp_path, "classification", model=without(), method=name)
    _, checkpointed = train(tmp_path, "classification", model=without(), method=name, arguments_changes=changes)
    for parameter in plain:
        torch.testing.assert_close(checkpointed[parameter], plain[parameter], rtol=1e-5, atol=1e-6)


def with_labels(labels):
    return [{**row, "labels": torch.tensor(labels)} for row in examples("classification")]


@pytest.mark.parametrize("problem", ["multi_label_classification", None])
@pytest.mark.parametrize("name", ["alum", "r-drop"])
def test_several_labels_an_example_are_refused(tmp_path, name, problem):
    """Named by the configuration, or by labels that make the model guess it."""
    model = tiny_model("classification", problem_type=problem)
    with pytest.raises(ValueError, match="must have one label per example"):
        trainer = AlumTrainer(
            model=model, args=arguments(tmp_path), train_dataset=with_labels([1.0, 0.0, 1.0]), method=name
        )
        trainer.train()


def test_freelb_trains_several_labels(tmp_path):
    model = tiny_model("classification", problem_type="multi_label_classification")
    data = with_labels([1.0, 0.0, 1.0])
    trainer = AlumTrainer(model=model, args=arguments(tmp_path), train_dataset=data, method="freelb")
    assert trainer.train().training_loss > 0


def test_a_regression_on_several_targets_compares_by_squares(tmp_path):
    """At radius 0 without dropout the divergence is 0; a KL of softmax would not see that logits moved together."""
    model = tiny_model("classification", problem_type="regression", num_labels=3)
    data = with_labels([1.0, 0.5, -1.0])
    trainer = AlumTrainer(model=model, args=arguments(tmp_path), train_dataset=data, method="alum")
    assert trainer.kind == "regression"
    clean, moved = torch.zeros(2, 3), torch.full((2, 3), 0.5)
    rows = trainer.regularizer.row_divergence(clean, moved, symmetric=True, detach_targets=True)
    torch.testing.assert_close(rows, torch.tensor([0.5, 0.5]))
    trainer.train()
    assert all(row["alum_kl"] > 0 for row in trainer.state.log_history if "loss" in row)
