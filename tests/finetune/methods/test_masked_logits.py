"""Classes, places and candidates that a model masks, with the smallest number there is or any other, in training.

The right value of a divergence with a masked class is that without it: a model that cuts the class off.
"""

import pytest
import torch

from megatron_alum.finetune.methods.presets import method
from tests.finetune.methods.test_trainer import BIG, train
from tests.finetune.toy import tiny_model

METHODS = {
    "alum": method("alum", **BIG),
    "symmetric": method("alum", **BIG, inner_divergence="symmetric"),
    "full gradients": method("alum", **BIG, detach_targets=False),
    "smart": method("smart", **BIG),
    "r-drop": method("r-drop"),
    "bregman": method("none", bregman_weight=1.0),
}
MASKS = [torch.finfo(torch.float32).min, -1e30, float("-inf")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def model_with(kind, change):
    """A model whose logits go through `change`; the labels' loss is that of all logits."""
    model = tiny_model(kind)

    def hook(_module, _inputs, outputs):
        for name in {"start_logits", "end_logits", "logits"} & set(outputs):
            outputs[name] = change(outputs[name])
        return outputs

    model.register_forward_hook(hook)
    return model


def fit(folder, kind, plan, change):
    """(log row, parameters) of one step."""
    one = {"max_steps": 1}
    trainer, parameters = train(folder, kind, model=model_with(kind, change), method=plan, arguments_changes=one)
    return [row for row in trainer.state.log_history if "loss" in row][-1], parameters


def masked(value, dtype=torch.float32):
    def change(logits):
        logits = logits.to(dtype)
        last = torch.arange(logits.shape[-1]) == logits.shape[-1] - 1
        return logits.masked_fill(last, max(value, torch.finfo(dtype).min) if value > float("-inf") else value)

    return change


def check(found, expected):
    """The same divergence and length of the gradient; weights that are numbers."""
    (row, parameters), (reference, _) = found, expected
    name = "bregman_kl" if "bregman_kl" in reference else "alum_kl"
    assert row[name] == pytest.approx(reference[name], rel=1e-4, abs=1e-7)
    assert row["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
    assert row.get("nonfinite", 0.0) == 0.0 and all(value.isfinite().all() for value in parameters.values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["classification", "spans", "tags", "choice"])
def test_a_masked_class_is_as_none(tmp_path, kind, name):
    expected = fit(tmp_path, kind, METHODS[name], lambda logits: logits[..., :-1] if kind != "spans" else cut(logits))
    check(fit(tmp_path, kind, METHODS[name], masked(MASKS[0])), expected)


def cut(logits):
    """Spans must keep their places: 1e4 below any other, which is 0 in any precision."""
    return torch.cat([logits[..., :-1], torch.full_like(logits[..., -1:], -1e4)], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", MASKS)
def test_whatever_masks_it_and_in_any_precision(tmp_path, value, dtype):
    expected = fit(tmp_path, "classification", METHODS["alum"], lambda logits: logits[..., :-1].to(dtype))
    check(fit(tmp_path, "classification", METHODS["alum"], masked(value, dtype)), expected)
