"""Clipping and skipping inside the optimizer's own kernel, against torch's clipping and AdamW written out."""

import itertools
import math

import pytest
import torch

from megatron_alum.compat.versions import gradients_of_norm
from megatron_alum.config.cli import build_config
from megatron_alum.config.run import RunConfig
from megatron_alum.models import build_model
from megatron_alum.planning.memory import num_parameters
from megatron_alum.training.optimizer import (
    apply_gradients,
    build_optimizer,
    global_norm,
    set_learning_rate,
    wrap_data_parallel,
)
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


def _norm_of_ones(rank: int, world_size: int) -> tuple[float, int, int]:
    """(norm of a gradient of ones, as TP 2 x DP 3 or 4 sees it; parameters of the whole network; gradients that this
    rank's shard counts), after one step."""
    from megatron_alum.parallel import initialize

    groups = initialize(tensor_parallel_size=2, timeout_seconds=60)
    values = {"data_path": ("none",), "dry_run": True, "model_size": "tiny", "seq_length": 16, "train_iters": 4}
    values |= {"max_position_embeddings": 8192, "micro_batch_size": 1, "global_batch_size": world_size // 2}
    values |= {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True}
    config = build_config(RunConfig, [values])
    network = build_model(config.model, vocab_size=100, groups=groups)
    model = wrap_data_parallel(network, config)
    optimizer = build_optimizer(model, config)
    for parameter in network.parameters():
        parameter.main_grad.fill_(1.0)
    set_learning_rate(optimizer, 2, config)
    norm = apply_gradients(optimizer, clip_grad=CLIP)
    counted = sum(len(gradients_of_norm(part)) for part in optimizer.chained_optimizers)
    return float(norm), num_parameters(config, padded_vocab_size=network.vocab_size), counted


@pytest.mark.parametrize("world_size", [6, 8])
def test_a_shard_may_hold_only_duplicates(world_size):
    """The table of positions, the same on both tensor-parallel ranks, is longer than two shards of the optimizer."""
    answers = run_ranks(world_size, _norm_of_ones)
    assert min(counted for _, _, counted in answers) == 0, "the layout has no such shard: the test shows nothing"
    assert all(norm == pytest.approx(parameters**0.5, rel=1e-5) for norm, parameters, _ in answers)


class _Shard:
    """What `global_norm` needs of an optimizer, on a rank with this many gradients, all 1."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def get_grad_stats_parallel_group(self) -> None:
        return None

    def get_loss_scale(self) -> torch.Tensor:
        return torch.ones(1)

    def get_main_grads_for_grad_norm(self) -> list[torch.Tensor]:
        return [torch.ones(()).expand(length) for length in self.lengths]


def _buffer(layers: int, h: int, tp: int, words: int = 30592, positions: int = 512) -> list[tuple[int, bool]]:
    """(size, counted on one rank only) of a tensor-parallel rank's parameters, last layer first as in the buffer."""
    whole, split = True, False
    head = [(2, whole), (2 * h, whole), (h, whole), (h * h, whole), (words // tp, split)]
    head += [(h, whole)] * 3 + [(h * h, whole)] + [(h, whole)] * 2
    layer = [(h, whole), (4 * h * h // tp, split), (4 * h // tp, split), (4 * h * h // tp, split), (h, whole)]
    layer += [(h, whole), (3 * h // tp, split), (3 * h * h // tp, split), (h, whole), (h * h // tp, split)] + [
        (h, whole)
    ] * 2
    return head + layer * layers + [(2 * h, whole), (positions * h, whole), (words // tp * h, split)]


@pytest.mark.parametrize(
    ("layers", "h", "tp", "dp", "has_empty"),
    [
        (12, 768, 2, 128, True),
        (12, 768, 4, 64, True),
        (12, 768, 8, 32, True),
        (24, 1024, 2, 256, True),
        (24, 1024, 4, 128, True),
        (24, 1024, 8, 64, True),
        (12, 768, 2, 8, False),
        (12, 768, 1, 128, False),
    ],
)
def test_the_norm_of_large_layouts(layers, h, tp, dp, has_empty, monkeypatch):
    """By the arithmetic of megatron-core's buffer: every parameter starts at a multiple of 64, the end is padded to one
    of 128 and the data-parallel size, and all shards are equally long. The squares of all ranks add up to the number of
    parameters."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_args, **_kwargs: None)  # one rank's part
    starts, end = [], 0
    for size, _ in (parameters := _buffer(layers, h, tp)):
        starts.append(-(-end // 64) * 64)
        end = starts[-1] + size
    shard = -(-end // math.lcm(dp, 128)) * math.lcm(dp, 128) // dp
    squares, num_empty = 0.0, 0
    for tp_rank, dp_rank in itertools.product((0, tp - 1) if tp > 1 else (0,), range(dp)):
        lengths = [
            min(start + size, (dp_rank + 1) * shard) - max(start, dp_rank * shard)
            for start, (size, whole) in zip(starts, parameters, strict=True)
            if not (whole and tp_rank)
        ]
        lengths = [length for length in lengths if length > 0]
        num_empty += not lengths
        squares += float(global_norm([_Shard(lengths)])) ** 2 * (tp - 1 if tp_rank else 1)  # the other ranks are alike
    assert (num_empty > 0) == has_empty
    assert squares == pytest.approx(sum(size if whole else size * tp for size, whole in parameters), rel=1e-5)


DECAYED = """
embedding.word_embeddings.weight
embedding.position_embeddings.weight
embedding.tokentype_embeddings.weight
encoder.layers.0.self_attention.linear_proj.weight
encoder.layers.0.self_attention.linear_qkv.weight
encoder.layers.0.mlp.linear_fc1.weight
encoder.layers.0.mlp.linear_fc2.weight
lm_head.dense.weight
pooler.dense.weight
binary_head.weight
"""
PLAIN = """
encoder.layers.0.input_layernorm.weight
encoder.layers.0.input_layernorm.bias
encoder.layers.0.self_attention.linear_proj.bias
encoder.layers.0.self_attention.linear_qkv.bias
encoder.layers.0.pre_mlp_layernorm.weight
encoder.layers.0.pre_mlp_layernorm.bias
encoder.layers.0.mlp.linear_fc1.bias
encoder.layers.0.mlp.linear_fc2.bias
encoder.final_layernorm.weight
encoder.final_layernorm.bias
lm_head.dense.bias
lm_head.layer_norm.weight
lm_head.layer_norm.bias
output_layer.bias
pooler.dense.bias
binary_head.bias
"""


def _decay_by_name(rank: int, world_size: int) -> dict[str, float]:
    from megatron_alum.parallel import initialize

    groups = initialize(tensor_parallel_size=1, timeout_seconds=60)
    values = {"data_path": ("none",), "dry_run": True, "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    values |= {"seq_length": 16, "train_iters": 4, "micro_batch_size": 2, "global_batch_size": 2, "weight_decay": 0.01}
    config = build_config(RunConfig, [values])
    network = build_model(config.model, vocab_size=100, groups=groups)
    optimizer = build_optimizer(wrap_data_parallel(network, config), config)
    set_learning_rate(optimizer, 2, config)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_what_decays_by_name():
    """Matrices and tables, as in Google's BERT (which leaves out LayerNorm and bias)."""
    (decay,) = run_ranks(1, _decay_by_name)
    assert decay == dict.fromkeys(DECAYED.split(), 0.01) | dict.fromkeys(PLAIN.split(), 0.0)
