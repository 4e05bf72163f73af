"""AlumTrainer as a library: the Trainer's own extension points, adapters, and settings that it would not read."""

import importlib.util

import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_alum.finetune.methods.presets import method
from megatron_alum.finetune.methods.trainer import AlumTrainer
from tests.finetune.methods.test_trainer import BIG, arguments, differ, train
from tests.finetune.toy import examples, tiny_model

WORDS = "bert.embeddings.word_embeddings.weight"
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="no PEFT: pip install peft")


@pytest.mark.parametrize("name", ["alum", "freelb"])
def test_the_model_of_model_init_is_the_one_that_trains(tmp_path, name):
    """`train` makes a second model: its word table must move, not that of the first."""
    made = []

    def make():
        made.append(tiny_model("classification"))
        return made[-1]

    data = examples("classification")
    trainer = AlumTrainer(model_init=make, args=arguments(tmp_path), train_dataset=data, method=name)
    trainer.train()
    start = tiny_model("classification").state_dict()[WORDS]
    first, second = (model.state_dict()[WORDS] for model in made)
    assert torch.equal(first, start) and not torch.equal(second, start)


@pytest.mark.parametrize("plan", [method("alum", **BIG), method("none", bregman_weight=5.0), method("freelb")])
def test_a_loss_function_of_the_caller_gives_the_same_steps(tmp_path, plan):
    """It divides by the examples of the whole optimizer step: every other term must be divided likewise."""

    def mean_of_the_step(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    changes = {"gradient_accumulation_steps": 2, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    results = []
    for options in ({}, {"compute_loss_func": mean_of_the_step}):
        model = tiny_model("classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        _, parameters = train(
            tmp_path, "classification", model=model, method=plan, arguments_changes=changes, **options
        )
        results.append(parameters)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("field", "value"),
    [("start_fraction", 0.9), ("ascent", "label"), ("batch_fraction", 0.25), ("head_chunk_rows", 8), ("nsp", False)],
)
def test_settings_of_pre_training_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be .* in fine-tuning, which does not use it"):
        method("alum", **{field: value})


@needs_peft
@pytest.mark.parametrize("perturb", ["word", "encoder_input"])
def test_adapters_train_and_the_encoder_stays(tmp_path, perturb):
    from peft import LoraConfig, get_peft_model

    def adapted():
        torch.manual_seed(1)
        return get_peft_model(tiny_model("classification"), LoraConfig(task_type="SEQ_CLS", r=2))

    results = []
    for name in ("none", "alum"):
        plan = method(name, perturb=perturb, **BIG) if name == "alum" else name
        trainer, _ = train(tmp_path, "classification", model=adapted(), method=plan)
        results.append(trainer.model.get_base_model().state_dict())
    adapters = [{key: value for key, value in result.items() if "lora_" in key} for result in results]
    assert adapters[0] and differ(*adapters)
    for result in results:
        assert torch.equal(result[WORDS], tiny_model("classification").state_dict()[WORDS])
