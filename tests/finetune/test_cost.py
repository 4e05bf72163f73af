"""What a regularised step costs, against the standard one: counted in FLOPs in the suite, timed in the slow tests."""

import statistics
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from megatron_alum.finetune.trainer import AlumTrainer
from tests.finetune.test_trainer import arguments

LIMIT = 2.7  # 8F / 3F = 2.67: clean forward and backward 3F, ascent 2F, adversarial forward and backward 3F


def step_of(method, layers, width, batch, length):
    """A callable that runs the training step of `method` on random tokens."""
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
    )
    torch.manual_seed(0)
    trainer = AlumTrainer(
        model=BertForSequenceClassification(config), args=arguments("unused"), train_dataset=[], method=method
    )
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()
    tokens = torch.randint(5, 1000, (batch, length))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(batch) % 2}

    def step():
        trainer.training_step(trainer.model, dict(inputs))
        optimizer.step()
        optimizer.zero_grad()

    return step


def flops(method):
    step = step_of(method, layers=2, width=64, batch=2, length=16)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_flops_of_a_step():
    standard = flops("none")
    # The word embedding's gradient is a sum of rows, not a matrix product: the ratio is a little above or below 8 / 3.
    assert 2.5 < flops("alum") / standard < LIMIT
    # R-Drop: a second forward and backward, no ascent. FreeLB with K = 3: three of each.
    assert flops("r-drop") / standard == pytest.approx(2.0, abs=0.05)
    assert flops("freelb") / standard == pytest.approx(3.0, abs=0.1)


@pytest.mark.slow
def test_time_of_a_step():
    """Median of interleaved steps, in processor time, so that a busy machine disturbs both alike.

    Matrix products cost 8/3; what torch does element by element (dropout masks above all, at some 30 million elements a
    second on a CPU) costs 3, for three forward and three backward passes. Measured on one CPU core: 2.8 to 2.9, for
    BERT-base and for a network half as wide (examples/finetune.md).
    """
    sizes = {"layers": 4, "width": 384, "batch": 16, "length": 64}
    steps = {name: step_of(name, **sizes) for name in ("none", "alum")}
    seconds = {name: [] for name in steps}
    for round_number in range(9):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if round_number:
                seconds[name].append(time.process_time() - start)
    ratio = statistics.median(seconds["alum"]) / statistics.median(seconds["none"])
    print(f"ALUM / standard step: {ratio:.2f}")
    assert ratio < 3.0
