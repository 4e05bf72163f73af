"""Clipping and skipping inside the optimizer's own kernel, against torch's clipping and AdamW written out."""

import pytest
import torch

from megatron_alum.config.cli import build_config
from megatron_alum.config.run import RunConfig
from megatron_alum.models import build_model
from megatron_alum.training.optimizer import apply_gradients, build_optimizer, set_learning_rate, wrap_data_parallel
from tests.helpers.distributed import run_ranks

CLIP = 0.5


def _step(rank: int, world_size: int, scale: float) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(norm, weights after one step by us, the same by torch alone) with gradients of `scale` times a pattern."""
    from megatron_alum.parallel import initialize

    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    values = {"data_path": ("none",), "dry_run": True, "model_size": "tiny", "seq_length": 16, "train_iters": 4}
    values |= {"micro_batch_size": 2, "global_batch_size": 2, "weight_decay": 0.01, "lr": 1e-2}
    config = build_config(RunConfig, [values])
    network = build_model(config.model, vocab_size=100, groups=groups)
    model = wrap_data_parallel(network, config)
    optimizer = build_optimizer(model, config)
    copies = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    for number, (name, parameter) in enumerate(network.named_parameters()):
        pattern = scale * torch.cos(torch.arange(parameter.numel()) * 0.1 + number).view_as(parameter)
        parameter.main_grad.copy_(pattern)
        copies[name].grad = pattern.clone()
    rate = set_learning_rate(optimizer, 2, config)
    norm = apply_gradients(optimizer, clip_grad=CLIP)
    expected_norm = torch.nn.utils.clip_grad_norm_(list(copies.values()), CLIP)
    torch.testing.assert_close(norm, expected_norm, equal_nan=True)
    decayed = [p for n, p in copies.items() if not (n.endswith("bias") or p.dim() == 1)]
    rest = [p for n, p in copies.items() if n.endswith("bias") or p.dim() == 1]
    settings = {"betas": (config.optimizer.adam_beta1, config.optimizer.adam_beta2), "eps": config.optimizer.adam_eps}
    plain = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    if torch.isfinite(norm):
        torch.optim.AdamW(plain, lr=rate, foreach=False, **settings).step()
    ours = {name: p.detach().clone() for name, p in network.named_parameters()}
    return float(norm), ours, {name: p.detach() for name, p in copies.items()}


@pytest.mark.parametrize("scale", [1e-4, 1.0], ids=["below the clip", "above the clip"])
def test_a_step_is_torchs_clipping_and_adamw(scale):
    ((norm, ours, expected),) = run_ranks(1, _step, scale)
    assert (norm > CLIP) == (scale == 1.0)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(scale):
    ((norm, ours, before),) = run_ranks(1, _step, scale)
    assert norm != norm or norm == float("inf")
    assert all(torch.equal(value, before[name]) for name, value in ours.items())
