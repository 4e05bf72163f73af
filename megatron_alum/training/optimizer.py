"""megatron-core's data-parallel wrapper and Adam around a model.

Gradients are summed, not averaged, over the data-parallel group: every loss is already divided by a count over the
whole global batch (`step.py`). Weight decay is decoupled and leaves out biases and LayerNorm (by megatron-core's rule:
names ending in .bias and parameters of one dimension).
"""

from __future__ import annotations

import copy

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from megatron_alum.config.run import RunConfig
from megatron_alum.models import SplitBert
from megatron_alum.training.schedule import learning_rate


def wrap_data_parallel(model: SplitBert, config: RunConfig) -> DistributedDataParallel:
    """The model with gradient buffers in float32 that are summed over the data-parallel group."""
    layout = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
    )
    summing = copy.copy(model.config)
    summing.calculate_per_token_loss = True  # megatron-core's name for "do not divide by the data-parallel size"
    return DistributedDataParallel(config=summing, ddp_config=layout, module=model)


def build_optimizer(model: DistributedDataParallel, config: RunConfig) -> MegatronOptimizer:
    """Adam over float32 master weights; apex's or Transformer Engine's fused one where megatron-core finds it."""
    options, precision = config.optimizer, config.precision
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=options.lr,
            min_lr=options.min_lr,
            weight_decay=options.weight_decay,
            adam_beta1=options.adam_beta1,
            adam_beta2=options.adam_beta2,
            adam_eps=options.adam_eps,
            decoupled_weight_decay=True,
            clip_grad=options.clip_grad,
            bf16=precision.bf16,
            fp16=precision.fp16,
            params_dtype=getattr(torch, precision.dtype_name),
            initial_loss_scale=precision.initial_loss_scale,
            min_loss_scale=precision.min_loss_scale,
            loss_scale_window=precision.loss_scale_window,
            hysteresis=precision.hysteresis,
            use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        ),
        [model],
        use_gloo_process_groups=False,
    )
    for group in optimizer.param_groups:
        if "fused" in group and group["fused"] is None:  # torch's AdamW: one kernel for all tensors of a group
            group["fused"] = True
    return optimizer


def set_learning_rate(optimizer: MegatronOptimizer, iteration: int, config: RunConfig) -> float:
    """Set rate and weight decay of `iteration` in every parameter group; returns the rate."""
    rate = learning_rate(iteration, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = config.optimizer.weight_decay * group["wd_mult"]
    return rate


def apply_gradients(optimizer: MegatronOptimizer, *, clip_grad: float) -> tuple[bool, float]:
    """Clip and step; (False, norm) without a step when the gradient is not finite.

    The norm is over all parameters, before clipping; NaN after a float16 overflow. Every rank gets the same answer: the
    gradients were summed over the data-parallel group and the norm over the tensor-parallel one.
    """
    if optimizer.prepare_grads():
        return False, float("nan")
    norm = float(optimizer.get_grad_norm())
    if norm != norm or norm == float("inf"):
        return False, norm
    if clip_grad > 0.0:
        for part in optimizer.chained_optimizers:
            clip_grad_by_total_norm_fp32(part.get_parameters(), clip_grad, norm)
    optimizer.step_with_ready_grads()
    return True, norm
