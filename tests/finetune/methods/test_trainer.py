"""AlumTrainer against the plain Trainer, against itself under equal settings, and its gradients against differences."""

import dataclasses
import functools
import tempfile
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification, Trainer, TrainingArguments

from megatron_alum.finetune.methods.divergence import Kind, comparable, samples_of
from megatron_alum.finetune.methods.embeddings import EmbeddingSplit, perturbable
from megatron_alum.finetune.methods.fast_dropout import fast_dropout
from megatron_alum.finetune.methods.presets import METHODS, method
from megatron_alum.finetune.methods.trainer import AlumTrainer
from tests.finetune.toy import batch, examples, tiny_config, tiny_model

BIG = {"epsilon": 0.1, "noise_std": 0.1, "step_size": 0.1, "projection": "normalized_gradient"}


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 5,
    }
    return TrainingArguments(**{**settings, **changes})


def train(folder, kind, trainer_class=AlumTrainer, model=None, resume=None, arguments_changes=None, **options):
    """(trainer, final parameters) of three steps on the toy data."""
    model = model or tiny_model(kind)
    trainer = trainer_class(
        model=model, args=arguments(folder, **(arguments_changes or {})), train_dataset=examples(kind), **options
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@functools.cache
def plainly_trained(kind, trainer_class=AlumTrainer):
    """Parameters after three steps without any method."""
    with tempfile.TemporaryDirectory() as folder:
        return train(folder, kind, trainer_class, **({"method": "none"} if trainer_class is AlumTrainer else {}))[1]


def assert_equal(first, second):
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)


def differ(first, second):
    return any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_none_and_alpha_zero_equal_the_plain_trainer_bit_for_bit(tmp_path, kind):
    plain, none = plainly_trained(kind, Trainer), plainly_trained(kind)
    _, zero = train(tmp_path, kind, method=method("alum", alpha=0.0))
    assert_equal(plain, none)
    assert_equal(plain, zero)


# Of three kinds test_levels.py trains the methods that regularise, at the words and at a layer.
EVERY = [
    (kind, name)
    for kind in get_args(Kind)
    for name, plan in METHODS.items()
    if name != "none" and not (plan.regularizes and kind in ("spans", "choice", "tags"))
]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_method_trains_every_kind_and_changes_the_result(tmp_path, kind, name):
    trainer, other = train(tmp_path, kind, method=name)
    assert differ(plainly_trained(kind), other)
    assert all(torch.isfinite(value).all() for value in other.values())
    if METHODS[name].regularizes:
        logged = [row for row in trainer.state.log_history if "loss" in row]
        assert len(logged) == 3 and all(row["alum_kl"] > 0 for row in logged)
        assert all(row.get("nonfinite", 0) == 0 for row in logged)


def second_pass(trainer, model, inputs):
    """The divergence that the trainer adds for a batch, clean pass included."""
    with trainer.split.clean_pass(inputs) as entered:
        outputs = model(**entered.inputs)
    clean = comparable(outputs, trainer.kind, perturbable(inputs))
    samples = samples_of(entered.x, clean, trainer.kind, inputs.get("labels"))
    return trainer._divergence(entered, clean, inputs, samples)


def divergence_of(kind, name, **changes):
    """(loss, gradients) of one divergence, dropout masks of the second pass fixed by the seed."""
    model = tiny_model(kind)
    trainer = AlumTrainer(model=model, args=arguments("unused"), train_dataset=[], method=method(name, **changes))
    inputs = batch(kind)
    model.train()
    torch.manual_seed(1)
    forward = trainer.split.forward

    def seeded(*arguments):
        torch.manual_seed(2)
        return forward(*arguments)

    trainer.split.forward = seeded
    out = second_pass(trainer, model, inputs)
    out.loss.backward()
    return out.loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_r_drop_equals_alum_with_radius_zero(kind):
    loss, gradients = divergence_of(kind, "r-drop")
    radius_zero = {"epsilon": 0.0, "noise_std": 0.0, "detach_targets": False}
    same_loss, same_gradients = divergence_of(kind, "alum", **radius_zero)
    assert loss == same_loss and loss > 0
    assert_equal(gradients, same_gradients)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_gradient_of_the_regulariser_equals_finite_differences(kind):
    """d divergence / d parameter of a 2-layer model at a fixed perturbation, targets attached, central differences."""
    model = tiny_model(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    fixed = method("alum", **{**BIG, "step_size": 0.0, "detach_targets": False})
    trainer = AlumTrainer(model=model, args=arguments("unused"), train_dataset=[], method=fixed)
    inputs = batch(kind)
    start = 0.1 * torch.randn(
        trainer.split.embed(inputs).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    trainer._noise_key = lambda embeddings: start

    def loss():
        return second_pass(trainer, model, inputs).loss

    names = (
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.1.output.dense.bias",
    )
    parameters = {n: p for n, p in model.named_parameters() if n.split(".", 1)[1] in names}
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        index = int(gradient.abs().argmax())
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter.view(-1)[index] += step
            values.append(loss().item())
            with torch.no_grad():
                parameter.view(-1)[index] -= step
        # Second-order differences of a float64 network: error about step^2 = 1e-8 of the curvature.
        assert gradient.view(-1)[index].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_ascent_raises_the_divergence_of_each_kind(kind):
    model = tiny_model(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    trainer = AlumTrainer(model=model, args=arguments("unused"), train_dataset=[], method=method("alum", **BIG))
    inputs = batch(kind)
    out = second_pass(trainer, model, inputs)
    assert out.stats["kl_gain"] > 0.1 * out.stats["inner_kl_start"] > 0
    assert out.delta[~perturbable(inputs)].abs().max() == 0


@pytest.mark.parametrize("kind", get_args(Kind))
def test_more_ascent_steps_climb_higher(kind):
    """K of 1, 2, 3 and 6 steps of a tenth of the radius, normalised gradients, one start: each ends above the last."""
    model = tiny_model(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    inputs, gains, starts = batch(kind), [], []
    for steps in (1, 2, 3, 6):
        far = {**BIG, "epsilon": 0.5, "noise_std": 0.05, "step_size": 0.05, "num_ascent_steps": steps}
        trainer = AlumTrainer(model=model, args=arguments("unused"), train_dataset=[], method=method("alum", **far))
        out = second_pass(trainer, model, inputs)
        gains.append(out.stats["kl_gain"].item())
        starts.append(out.stats["inner_kl_start"].item())
    assert len(set(starts)) == 1, "the same random start"
    assert gains == sorted(gains) and gains[0] > 0 and gains[-1] > 1.5 * gains[0]


def roberta(**changes):
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        **changes,
    )
    return RobertaForSequenceClassification(config)


def encoders():
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        ElectraConfig,
        ElectraForSequenceClassification,
        MegatronBertConfig,
        MegatronBertForSequenceClassification,
    )

    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return {
        "bert": lambda: tiny_model("classification"),
        "roberta": roberta,
        "megatron-bert": lambda: MegatronBertForSequenceClassification(MegatronBertConfig(**sizes)),
        "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**sizes, embedding_size=8)),
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
        ),
    }


@pytest.mark.parametrize("level", ["word", "encoder_input", 1])
@pytest.mark.parametrize("name", list(encoders()))
def test_forward_from_embeddings_equals_forward_from_tokens(name, level):
    model = encoders()[name]().eval()
    inputs = batch("classification")
    del inputs["labels"]
    if name == "roberta":  # pad id 1
        inputs["input_ids"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 1)
    split = EmbeddingSplit(model, level)
    with split.clean_pass(inputs) as entered:
        found = model(**entered.inputs).logits
    again = split.forward(entered.x, inputs, entered.noted).logits
    for logits in (found, again):
        torch.testing.assert_close(logits, model(**inputs).logits, rtol=0, atol=0)


def test_models_that_cannot_run_from_embeddings_are_refused():
    class Plain(nn.Module):
        def forward(self, input_ids):
            return input_ids

    with pytest.raises(ValueError, match="one table of word embeddings"):
        EmbeddingSplit(Plain(), "word")
    with pytest.raises(ValueError, match="embeddings"):
        EmbeddingSplit(Plain(), "encoder_input")


def test_gradient_accumulation_gives_the_mean_of_the_micro_batches(tmp_path):
    """Dropout 0, fixed perturbation size: 2 x 4 examples accumulated equal one batch of 8 in the first step."""
    model = lambda: tiny_model("classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # noqa: E731
    plan = method("alum", epsilon=0.0, noise_std=0.0)
    steps = {"max_steps": 1, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0}
    split = {**steps, "gradient_accumulation_steps": 2}
    _, accumulated = train(tmp_path, "classification", model=model(), method=plan, arguments_changes=split)
    whole = {**steps, "per_device_train_batch_size": 8}
    _, together = train(tmp_path, "classification", model=model(), method=plan, arguments_changes=whole)
    for name in together:
        torch.testing.assert_close(accumulated[name], together[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["alum", "freelb"])
def test_bfloat16_autocast_trains(tmp_path, name):
    trainer, _ = train(tmp_path, "classification", method=name, arguments_changes={"bf16": True})
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in trainer.state.log_history if "loss" in row)


@pytest.mark.parametrize(
    "level",
    [
        pytest.param({}, id="word"),
        pytest.param({"perturb": "encoder_input"}, id="input", marks=pytest.mark.slow),
        pytest.param({"perturb": "layer", "perturb_layer": 1}, id="layer", marks=pytest.mark.slow),
    ],
)
def test_torch_compile_gives_the_eager_result(tmp_path, monkeypatch, level):
    """Every pass goes through the compiled module; the eager backend of dynamo needs no compiler."""
    monkeypatch.setattr(AlumTrainer, "_dropout", lambda trainer: nullcontext())  # torch's masks, as compiled code draws
    plan = method("alum", **BIG, **level)
    eager, _ = train(tmp_path, "classification", method=plan)
    compiled, _ = train(
        tmp_path,
        "classification",
        method=plan,
        arguments_changes={"torch_compile": True, "torch_compile_backend": "eager"},
    )
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (eager, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(Kind))
def test_compiled_kernels_give_the_eager_result(tmp_path, monkeypatch, kind):
    """The default backend, inductor, generates code for the clean pass, the ascent and the second pass."""
    monkeypatch.setattr(AlumTrainer, "_dropout", lambda trainer: nullcontext())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for changes in ({}, {"torch_compile": True, "torch_compile_backend": "inductor"}):
        model = tiny_model(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer, _ = train(tmp_path, kind, model=model, method=method("alum", **BIG), arguments_changes=changes)
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    # Compiled float32 sums run in another order, amplified over three steps by a network of scale 1.
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("name", ["alum", "smart"])
def test_resume_equals_an_uninterrupted_run(tmp_path, name):
    plan = method(name, bregman_weight=1.0) if name == "smart" else name
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    _, straight = train(tmp_path / "a", "classification", method=plan, arguments_changes=saving)
    _, resumed = train(
        tmp_path / "a",
        "classification",
        method=plan,
        arguments_changes=saving,
        resume=str(tmp_path / "a" / "checkpoint-2"),
    )
    assert_equal(straight, resumed)


def test_freelb_without_movement_equals_plain_training(tmp_path):
    """K = 2 passes at delta = 0 with one set of dropout masks: the mean of equal gradients is the gradient.

    Gradient descent, since Adam's steps and clipped gradients do not change with the gradients' scale.
    """
    descent = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    still = dataclasses.replace(METHODS["freelb"].freelb, num_steps=2, step_size=0.0, init_magnitude=0.0)
    plan = dataclasses.replace(METHODS["freelb"], freelb=still)
    _, freelb = train(tmp_path, "classification", method=plan, arguments_changes=descent)
    with fast_dropout():
        _, plain = train(tmp_path, "classification", method="none", arguments_changes=descent)
    for name in plain:
        torch.testing.assert_close(freelb[name], plain[name], rtol=1e-5, atol=1e-6)


def test_bregman_term_pulls_towards_the_average(tmp_path):
    """With a frozen average (momentum 1) a large weight keeps the predictions near the first ones."""
    inputs = batch("classification")
    start = tiny_model("classification").eval()(**inputs).logits.softmax(-1)
    distances = []
    for weight in (0.0, 20.0):
        plan = dataclasses.replace(METHODS["none"], bregman_weight=weight, bregman_momentum=1.0)
        trainer, _ = train(tmp_path, "classification", method=plan, arguments_changes={"max_steps": 20})
        distances.append((trainer.model.eval()(**inputs).logits.softmax(-1) - start).abs().mean().item())
    assert distances[1] < 0.6 * distances[0]


def test_encoder_input_level_trains_and_shares_the_clean_dropout(tmp_path):
    """At radius 0 with shared dropout the second pass repeats the clean one exactly, embedding dropout included."""
    same = method("alum", perturb="encoder_input", dropout="shared", epsilon=0.0, noise_std=0.0)
    trainer, _ = train(tmp_path, "classification", method=same)
    assert [row["alum_kl"] for row in trainer.state.log_history if "loss" in row] == [0.0] * 3
    moved, _ = train(tmp_path, "classification", method=method("alum", perturb="encoder_input", **BIG))
    assert all(row["alum_kl"] > 0 for row in moved.state.log_history if "loss" in row)


def test_freelb_at_the_encoder_input_is_refused():
    with pytest.raises(ValueError, match="--alum-perturb must be word"):
        AlumTrainer(
            model=tiny_model("classification"),
            args=arguments("unused"),
            method=method("freelb", perturb="encoder_input"),
        )


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="none, alum, alum-normalized, smart, freelb, r-drop"):
        method("vat")


def test_sharded_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(AlumTrainer, "is_fsdp_enabled", True, raising=False)
    monkeypatch.setattr(Trainer, "__init__", lambda self, *a, **k: None)
    with pytest.raises(ValueError, match="FSDP"):
        AlumTrainer(model=tiny_config, method="alum")
