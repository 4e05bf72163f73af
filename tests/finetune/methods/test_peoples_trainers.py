"""AlumTrainer with users' code: 16-bit models, custom Trainers, tuples, plain modules, other encoders."""

import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer

from megatron_alum.finetune.methods.embeddings import EmbeddingSplit, WholeModel
from megatron_alum.finetune.methods.presets import method
from megatron_alum.finetune.methods.trainer import AlumTrainer
from tests.finetune.methods.test_embeddings import SIZES
from tests.finetune.methods.test_trainer import BIG, arguments, assert_equal, differ, plainly_trained, train
from tests.finetune.toy import batch, examples, tiny_config, tiny_model

BIG_ALUM = method("alum", **BIG)
HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(("name", "dtype"), [("alum", HALF[0]), ("alum", HALF[1]), ("freelb", HALF[1])])
def test_a_16_bit_model_is_trained_in_float32_with_one_warning(tmp_path, dtype, name):
    with pytest.warns(UserWarning, match="converted to float32") as caught:
        _, trained = train(tmp_path, "classification", model=tiny_model("classification").to(dtype), method=name)
    assert len([one for one in caught if "float32" in str(one.message)]) == 1
    expected = tiny_model("classification").to(dtype).float()
    _, reference = train(tmp_path, "classification", model=expected, method=name)
    assert_equal(trained, reference)
    assert all(value.dtype == torch.float32 for value in trained.values())


def test_a_16_bit_model_of_model_init_too(tmp_path):
    make = lambda: tiny_model("classification").bfloat16()  # noqa: E731
    with pytest.warns(UserWarning, match="converted to float32"):
        trainer = AlumTrainer(model_init=make, args=arguments(tmp_path), train_dataset=examples("classification"))
        trainer.train()
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float32}


def test_method_none_leaves_a_16_bit_model_as_the_trainer_does_and_warns(tmp_path):
    _, plain = train(tmp_path, "classification", Trainer, model=tiny_model("classification").bfloat16())
    with pytest.warns(UserWarning, match="mostly rounded away"):
        _, none = train(tmp_path, "classification", model=tiny_model("classification").bfloat16(), method="none")
    assert_equal(plain, none)


class Weighted(Trainer):
    """Hugging Face's documented way to another loss."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([1.0, 2.0, 3.0])
        loss = cross_entropy(outputs["logits"] if isinstance(outputs, dict) else outputs[0], labels, weight)
        return (loss, outputs) if return_outputs else loss


class ByName(Trainer):
    """Looks at the token ids, and names every argument, in an order of its own: the Trainer passes them by name."""

    def compute_loss(self, model, inputs, num_items_in_batch=None, return_outputs=False):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask"))
        share = (inputs.get("input_ids") > 0).float().mean()
        loss = cross_entropy(outputs.logits, inputs["labels"]) * share
        return (loss, outputs) if return_outputs else loss


class Looks(Trainer):
    """Reads the token ids after the Trainer's own loss, and returns the bare logits."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss * (1 + inputs["input_ids"].float().mean() / 100)
        return (loss, outputs.logits) if return_outputs else loss


THEIRS = [Weighted, ByName, Looks]


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("name", ["none", "alum", "r-drop", "freelb"])
def test_a_trainer_of_the_users_own_behind_this_one(tmp_path, theirs, name):
    both = type("Both", (AlumTrainer, theirs), {})
    alone = plainly_trained("classification", theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, together = train(tmp_path, "classification", both, method=name)
    if name == "none":
        assert_equal(alone, together)
    else:
        assert differ(alone, together)


@pytest.mark.parametrize("theirs", THEIRS)
def test_its_loss_is_the_one_that_is_regularised(tmp_path, theirs):
    """Radius 0 without dropout: the divergence is 0, and what is left is the user's own loss."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    _, alone = train(tmp_path, "classification", theirs, model=tiny_model("classification", **quiet))
    both = type("Both", (AlumTrainer, theirs), {})
    still = method("alum", epsilon=0.0, noise_std=0.0)
    _, together = train(tmp_path, "classification", both, model=tiny_model("classification", **quiet), method=still)
    for name in alone:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-4, atol=1e-6)


def test_a_compute_loss_that_leaves_the_method_out_is_warned_of_once(tmp_path):
    class Mine(AlumTrainer):
        compute_loss = Weighted.compute_loss

    with pytest.warns(UserWarning, match="method alum has no effect") as caught:
        train(tmp_path, "classification", Mine, method="alum")
    assert len([one for one in caught if "no effect" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, freelb = train(tmp_path, "classification", Mine, method="freelb")  # takes the loss as it is
    _, usual = train(tmp_path, "classification", method="freelb")
    assert differ(freelb, usual)


@pytest.mark.parametrize("kind", ["classification", "spans", "tags", "choice", "regression"])
def test_a_model_that_gives_tuples(tmp_path, kind):
    _, named = train(tmp_path, kind, method=BIG_ALUM)
    _, tuples = train(tmp_path, kind, model=tiny_model(kind, return_dict=False), method=BIG_ALUM)
    assert_equal(named, tuples)


class Plain(nn.Module):
    """A user's own head on an encoder."""

    def __init__(self, form=dict):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head, self.form = transformers.BertModel(tiny_config()), nn.Linear(16, 3), form

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.head(self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])
        loss = cross_entropy(logits, labels) if labels is not None else None
        if self.form is dict:
            return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}
        return (logits,) if loss is None else (loss, logits)


class Bag(nn.Module):
    """No transformers model at all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(64, 16), nn.Linear(16, 3)

    def forward(self, input_ids, labels=None, **unused):
        logits = self.head(self.words(input_ids).mean(1))
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


def fit(folder, model, plan):
    data = examples("classification")
    trainer = AlumTrainer(model, arguments(folder), train_dataset=data, method=plan, kind="classification")
    trainer.train()
    return trainer


@pytest.mark.parametrize("make", [Plain, lambda: Plain(tuple), Bag], ids=["dict", "tuple", "bag"])
@pytest.mark.parametrize("plan", [BIG_ALUM, "freelb", method("none", bregman_weight=1.0)])
def test_modules_that_are_not_from_transformers(tmp_path, make, plan):
    _, plain = train(tmp_path, "classification", Trainer, model=make())
    trainer = fit(tmp_path, make(), plan)
    assert differ(plain, dict(trainer.model.named_parameters()))
    if plan is BIG_ALUM:
        assert all(row["alum_kl"] > 0 for row in trainer.state.log_history if "loss" in row)


def test_methods_that_do_not_move_x_take_any_model(tmp_path):
    class TwoTables(Bag):
        def __init__(self):
            super().__init__()
            self.more = nn.Embedding(64, 16)
            self.dropout = nn.Dropout(0.3)

        def forward(self, input_ids, labels=None, **unused):
            x = self.dropout(self.words(input_ids) + self.more(input_ids))
            logits = self.head(x.mean(1))
            return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}

    trainer = fit(tmp_path, TwoTables(), "r-drop")
    assert isinstance(trainer.split, WholeModel)
    assert all(row["alum_kl"] > 0 for row in trainer.state.log_history if "loss" in row)
    with pytest.raises(ValueError, match=r"one table of word embeddings .* Use --alum-perturb encoder_input"):
        fit(tmp_path, TwoTables(), "alum")


@pytest.mark.parametrize("level", ["word", "encoder_input"])
def test_modernbert_spans(tmp_path, level):
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.ModernBertConfig(**{**SIZES, **special}, attn_implementation="eager", reference_compile=False)
    model = transformers.ModernBertForQuestionAnswering(config).eval()
    split = EmbeddingSplit(model, level)
    inputs = {name: value for name, value in batch("spans").items() if "positions" not in name}
    with torch.no_grad(), split.clean_pass(inputs) as clean:
        found = model(**clean.inputs).start_logits
    again = split.forward(clean.x, inputs, clean.noted).start_logits
    expected = model(**inputs).start_logits
    for logits in (found, again):
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    trainer, _ = train(tmp_path, "spans", model=model, method=method("alum", perturb=level, **BIG))
    assert all(row["alum_kl"] > 0 for row in trainer.state.log_history if "loss" in row)
