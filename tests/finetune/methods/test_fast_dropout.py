"""Fast dropout inside regularised steps: it is used there and nowhere else, and recomputation sees the same masks."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_alum.finetune.methods.fast_dropout import fast_dropout
from megatron_alum.finetune.methods.presets import METHODS
from megatron_alum.finetune.methods.trainer import AlumTrainer
from tests.finetune.methods.test_trainer import arguments, examples, train
from tests.finetune.toy import batch, tiny_model


class Recorder(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators_of_a_step(folder, method):
    """Of one training step, backward included."""
    model = tiny_model("classification")
    trainer = AlumTrainer(model=model, args=arguments(folder), train_dataset=examples("classification"), method=method)
    trainer.current_gradient_accumulation_steps = 1
    with Recorder() as recorder:
        trainer.training_step(model, batch("classification"))
    return recorder.names


@pytest.mark.parametrize("method", list(METHODS))
def test_regularised_steps_use_it_and_plain_ones_do_not(tmp_path, method):
    names = operators_of_a_step(tmp_path, method)
    drawn = {name for name in names if "bernoulli" in name or name == "native_dropout"}
    if method == "none":
        assert drawn and "dropout" not in names
    else:
        assert not drawn and "dropout" in names


def test_recomputed_activations_see_the_same_masks(tmp_path):
    """Backward runs the forward of each layer again: inside `fast_dropout`, from the same generator state."""
    _, expected = train(tmp_path, "classification", method="alum")
    recompute = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    _, found = train(tmp_path, "classification", method="alum", arguments_changes=recompute)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.dropout(x, 0.5, inplace=True),
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5, is_causal=True),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.dropout1d(x, 0.5),
    ],
    ids=["inplace", "causal", "no-dropout", "evaluation", "whole-channels"],
)
def test_what_it_does_not_serve_is_torchs_bit_for_bit(call):
    results = []
    for context in (nullcontext(), fast_dropout()):
        torch.manual_seed(3)
        x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1)).flatten(0, 1)
        with context:
            results.append(call(x))
    assert torch.equal(*results)


def test_what_it_serves_is_dropped_and_scaled():
    torch.manual_seed(4)
    x = torch.ones(2, 1, 1000, 8)
    with fast_dropout():
        dropped = torch.nn.Dropout(0.25)(x)
        attended = F.scaled_dot_product_attention(x, x, x, None, 0.25)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.015)  # 4 standard errors
    assert dropped.max().item() == pytest.approx(4 / 3, rel=1e-4)
    assert attended.mean().item() == pytest.approx(1.0, abs=0.01) and attended.std() > 0.01


def test_torchs_own_come_back_after_an_error():
    before = F.dropout, F.scaled_dot_product_attention
    with pytest.raises(KeyError), fast_dropout():
        assert F.dropout is not before[0]
        raise KeyError
    assert (F.dropout, F.scaled_dot_product_attention) == before
