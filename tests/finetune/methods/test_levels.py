"""Random perturbation alone (K = 0), late layers and the inner loss of one example, in a whole fine-tuning step.

The step is compared with one written out here from BERT's own modules and torch.autograd, without `alum`, `ops` or the
Trainer: loss, perturbation and every parameter's gradient, in float64 without dropout.
"""

from typing import get_args

import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_alum.finetune.methods.divergence import Kind
from megatron_alum.finetune.methods.embeddings import perturbable
from megatron_alum.finetune.methods.presets import METHODS, method
from megatron_alum.finetune.methods.trainer import AlumTrainer
from megatron_alum.reference.noise import gaussian_noise
from tests.finetune.methods.test_trainer import BIG, arguments, differ, plainly_trained, second_pass, train
from tests.finetune.toy import batch, examples, tiny_model

STEP = {"epsilon": 0.4, "noise_std": 0.1, "step_size": 2.0}  # clamp, wide enough not to hide what g is
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LEVELS = {
    "word": {},
    "layer 1": {"perturb": "layer", "perturb_layer": 1},
    "layer 2": {"perturb": "layer", "perturb_layer": 2},
}


def exact_model(kind="classification", **changes):
    return tiny_model(kind, **{**NO_DROPOUT, "num_hidden_layers": 3, **changes}).double()


def below(model, ids, layer):
    """x: word embeddings, or the hidden state after a layer, of token ids without pads."""
    if layer == 0:
        return model.bert.embeddings.word_embeddings(ids)
    hidden = model.bert.embeddings(input_ids=ids)
    for module in model.bert.encoder.layer[:layer]:
        hidden = module(hidden)
    return hidden


def above(model, x, layer):
    """Logits from x."""
    hidden = model.bert.embeddings(inputs_embeds=x) if layer == 0 else x
    for module in model.bert.encoder.layer[layer:]:
        hidden = module(hidden)
    return model.classifier(model.bert.pooler(hidden))


def kl(p_logits, q_logits):
    """KL of every row."""
    p = p_logits.softmax(-1)
    return (p * (p_logits.log_softmax(-1) - q_logits.log_softmax(-1))).sum(-1)


def written_out(model, ids, labels, layer, num_steps, seed, alpha):
    """(loss, delta) of one step, with a separate ascent per example."""
    x = below(model, ids, layer)
    clean = above(model, x, layer)
    sample = torch.arange(len(ids)).repeat_interleave(ids.shape[1])
    position = torch.arange(ids.shape[1]).repeat(len(ids))
    delta = gaussian_noise(sample, position, x.shape[-1], STEP["noise_std"], (seed, 0)).view(x.shape).double()
    for _ in range(num_steps):
        for b in range(len(ids)):
            own = delta[b : b + 1].clone().requires_grad_(True)
            moved = above(model, x[b : b + 1].detach() + own, layer)
            (g,) = torch.autograd.grad(kl(clean[b : b + 1].detach(), moved).sum(), own)
            delta[b] = (own + STEP["step_size"] * g)[0].detach().clamp(-STEP["epsilon"], STEP["epsilon"])
    moved = above(model, x + delta, layer)
    symmetric = kl(clean.detach(), moved) + kl(moved.detach(), clean)
    # Gradients of the two directions with constant targets: q - p and p - q, whatever the first argument is held at.
    return cross_entropy(clean, labels) + alpha * symmetric.mean(), delta


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_step_equals_one_written_out(level, num_steps):
    layer = LEVELS[level].get("perturb_layer", 0)
    settings = {**STEP, **LEVELS[level], "alpha": 3.0, "num_ascent_steps": num_steps}
    if num_steps == 0:
        settings = {key: value for key, value in settings.items() if key not in ("epsilon", "step_size")}
    plan = method("alum", **settings)
    inputs = batch("classification")
    ids, labels = torch.where(inputs["input_ids"] > 0, inputs["input_ids"], 7), inputs["labels"]
    model, twin = exact_model(), exact_model()
    trainer = AlumTrainer(model=model, args=arguments("unused"), train_dataset=[], method=plan)
    model.train()
    loss = trainer.compute_loss(model, {"input_ids": ids, "labels": labels})
    expected, _ = written_out(twin, ids, labels, layer, num_steps, trainer.args.seed, 3.0)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    assert loss > cross_entropy(above(twin, below(twin, ids, layer), layer), labels) + 1e-4
    loss.backward()
    expected.backward()
    own = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-7, atol=1e-10, msg=name)


def deltas(kind, rows, reduction="sample", **changes):
    """The movement of delta, without projection, for some rows of a batch, each with a start of its own."""
    settings = {**STEP, "epsilon": 1e6, "inner_reduction": reduction, **changes}
    model = exact_model(kind)
    trainer = AlumTrainer(model=model, args=arguments("unused"), train_dataset=[], method=method("alum", **settings))
    inputs = {name: value[rows] for name, value in batch(kind, 8).items()}
    generator = torch.Generator().manual_seed(0)
    shape = (8, 4, 12, 16) if kind == "choice" else (8, 1, 12, 16)
    start = 0.1 * torch.randn(shape, dtype=torch.float64, generator=generator)[rows].flatten(0, 1)
    trainer._noise_key = lambda x: start
    moved = second_pass(trainer, model.eval(), inputs).delta - start
    return torch.where(perturbable(inputs).unsqueeze(-1), moved, 0.0)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_ascent_of_an_example_is_the_same_whatever_else_is_in_the_batch(kind):
    whole, few = deltas(kind, slice(0, 8)), deltas(kind, slice(0, 2))
    assert few.abs().max() > 1e-4
    torch.testing.assert_close(few, whole[: len(few)], rtol=1e-7, atol=1e-12)


def test_reduction_over_the_batch_is_noticed():
    """The previous test's counterpart: a mean over the batch climbs four times slower with four times the examples."""
    whole, few = (deltas("classification", slice(0, n), reduction="batch") for n in (8, 2))
    torch.testing.assert_close(few, 4 * whole[:2], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_no_ascent_step_trains_every_kind_and_logs_no_ascent(tmp_path, kind):
    trainer, _ = train(tmp_path, kind, method=method("alum", num_ascent_steps=0, noise_std=0.1))
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all(row["alum_kl"] > 0 and row["ascent_ratio"] == 0 and row["nonfinite"] == 0 for row in rows)
    assert not any({"kl_gain", "inner_kl_start", "inner_kl_last"} & row.keys() for row in rows)


def test_smart_without_a_step_is_alum_without_a_step_but_for_its_average(tmp_path):
    smart, alum = (method(name, num_ascent_steps=0) for name in ("smart", "alum"))
    assert smart.config == alum.config and not smart.ascends
    _, plain = train(tmp_path, "classification", method=smart)
    _, averaged = train(tmp_path, "classification", method=method("smart", num_ascent_steps=0, bregman_weight=5.0))
    assert differ(plain, averaged)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].regularizes])
@pytest.mark.parametrize("kind", ["spans", "choice", "tags"])
def test_every_method_trains_at_the_words_and_at_a_layer(tmp_path, kind, name):
    below, words = train(tmp_path, kind, method=name)
    above, upper = train(tmp_path, kind, method=method(name, perturb="layer", perturb_layer=1))
    assert differ(plainly_trained(kind), words) and differ(words, upper)
    assert all(torch.isfinite(value).all() for value in words.values())
    for trainer in (below, above):
        logged = [row for row in trainer.state.log_history if "loss" in row]
        assert len(logged) == 3 and all(row["alum_kl"] > 0 and row.get("nonfinite", 0) == 0 for row in logged)


def test_a_layer_shares_the_clean_dropout_above_it(tmp_path):
    """At radius 0 the second pass repeats the clean one exactly, although the lower layers draw no masks again."""
    same = {"perturb": "layer", "perturb_layer": 1, "epsilon": 0.0, "noise_std": 0.0}
    trainer, _ = train(tmp_path, "classification", method=method("alum", **same, dropout="shared"))
    assert [row["alum_kl"] for row in trainer.state.log_history if "loss" in row] == [0.0] * 3
    trainer, _ = train(tmp_path, "classification", method=method("alum", **same))
    assert all(row["alum_kl"] > 0 for row in trainer.state.log_history if "loss" in row)


def test_activation_checkpoints_give_the_plain_result_at_a_layer(tmp_path):
    plan = method("alum", perturb="layer", perturb_layer=1, **BIG)
    changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    model = lambda: tiny_model("classification", **NO_DROPOUT)  # noqa: E731
    _, plain = train(tmp_path, "classification", model=model(), method=plan)
    _, checkpointed = train(tmp_path, "classification", model=model(), method=plan, arguments_changes=changes)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["r-drop", "alum"])
def test_reentrant_checkpoints_are_refused_at_a_layer_even_without_an_ascent(name):
    """They pass on a hidden state without its graph: the lower layers would get no gradient from the second pass."""
    plan = method(name, perturb="layer", perturb_layer=1, **({"num_ascent_steps": 0} if name == "alum" else {}))
    changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"must have use_reentrant=False with method .* takes x from a layer"):
        AlumTrainer(model=tiny_model("classification"), args=arguments("unused", **changes), method=plan)


def test_reentrant_checkpoints_serve_random_perturbation_of_words(tmp_path):
    plan = method("alum", num_ascent_steps=0, noise_std=0.1)
    changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    model = lambda: tiny_model("classification", **NO_DROPOUT)  # noqa: E731
    _, plain = train(tmp_path, "classification", model=model(), method=plan)
    _, checkpointed = train(tmp_path, "classification", model=model(), method=plan, arguments_changes=changes)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-5, atol=1e-6)


def test_the_model_of_model_init_is_entered(tmp_path):
    """`train` makes a second model: its layers are those that run."""
    plan, data = method("alum", perturb="layer", perturb_layer=1, **BIG), examples("classification")
    make = lambda: tiny_model("classification")  # noqa: E731
    trainer = AlumTrainer(model_init=make, args=arguments(tmp_path), train_dataset=data, method=plan)
    first = trainer.split.entrance().source
    trainer.train()
    assert trainer.split.entrance().source is trainer.model.bert.encoder.layer[0] is not first


def test_a_layer_beyond_the_model_is_refused_with_its_flag():
    with pytest.raises(ValueError, match=r"--alum-perturb-layer must be .* number of layers \(2\), but is 2"):
        plan = method("alum", perturb="layer", perturb_layer=2)
        AlumTrainer(model=tiny_model("classification"), args=arguments("unused"), method=plan)
