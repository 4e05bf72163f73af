"""megatron-core's data-parallel wrapper and Adam around a model.

Gradients are summed, not averaged, over the data-parallel group: every loss is already divided by a count over the
whole global batch (`step.py`). Weight decay is decoupled and leaves out biases and LayerNorm (by megatron-core's rule:
names ending in .bias and parameters of one dimension).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from megatron_alum.compat.adam import use_torch_adam
from megatron_alum.compat.versions import gradients_of_norm
from megatron_alum.config.run import RunConfig
from megatron_alum.models import SplitBert
from megatron_alum.models.cpu import accumulate_in_place
from megatron_alum.objective.schedule import learning_rate
from megatron_alum.training.parameter_gather import wait_in_modules


def wrap_data_parallel(model: SplitBert, config: RunConfig) -> DistributedDataParallel:
    """The model with gradient buffers that are summed over the data-parallel group, in float32 by default."""
    layout = DistributedDataParallelConfig(
        grad_reduce_in_fp32=not config.parallel.grad_reduce_in_bf16,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
    )
    summing = copy.copy(model.config)
    summing.calculate_per_token_loss = True  # megatron-core's name for "do not divide by the data-parallel size"
    wrapped = DistributedDataParallel(config=summing, ddp_config=layout, module=model)
    summing.no_sync_func = wrapped.no_sync  # for the pipeline schedule
    if layout.overlap_param_gather:
        wait_in_modules(wrapped, model)
    if not layout.overlap_grad_reduce:
        accumulate_in_place(model)
    return wrapped


def build_optimizer(model: DistributedDataParallel, config: RunConfig) -> MegatronOptimizer:
    """torch's fused Adam over float32 master weights."""
    use_torch_adam()
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
            overlap_param_gather=config.parallel.overlap_param_gather,
        ),
        [model],
        use_gloo_process_groups=False,
    )
    for group in optimizer.param_groups:
        group["fused"] = True  # one kernel for all tensors of a group
    return optimizer


def load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Load what a checkpoint stores of the optimizer, except the tensors of a distributed optimizer's shard: these are
    only allocated here and read afterwards (`optimizer_state.own_tensors`).
    """
    (part,) = optimizer.chained_optimizers
    _fit_to_adam(part.optimizer, loaded.get("optimizer", loaded))
    if not isinstance(part, DistributedOptimizer):
        optimizer.load_state_dict(loaded)
        return
    optimizer.load_state_dict({name: value for name, value in loaded.items() if name != "param_state"})
    for state in part.optimizer.state.values():
        # megatron-core gives all parameters one step tensor, which torch's fused kernel would increment for each of
        # them.
        if "step" in state:
            state["step"] = state["step"].clone()


def _fit_to_adam(inner: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Change groups and step count in place to those of torch's Adam, where another library's Adam stored them.

    The groups of each library have options that the others lack. torch counts steps beside the moments of every
    parameter, and megatron-core stores one such count for all; the others count in the groups.
    """
    groups, moments = stored["param_groups"], stored.get("state")  # the distributed optimizer's moments are elsewhere
    counts = [group.pop("step") for group in groups if group.get("step") is not None]
    if moments is not None and "common_step" in moments:
        counts.append(moments.pop("common_step"))
    own = {name: value for name, value in inner.param_groups[0].items() if name not in ("params", "step")}
    for group in groups:
        options = {name: group.get(name, value) for name, value in own.items()}
        # 0.19 tells groups by these, too; a run may go on with another rate, which each iteration sets anyway.
        options |= {name: own[name] for name in ("max_lr", "min_lr") if name in own}
        members = {"params": group["params"]} if "params" in group else {}
        group.clear()
        group.update({**options, **members})
    if moments is not None:
        moments["common_step"] = torch.tensor(float(counts[0]))
    else:
        for group in groups:
            group["step"] = int(counts[0])


def set_learning_rate(optimizer: MegatronOptimizer, iteration: int, config: RunConfig) -> float:
    """Set the learning rate and weight decay of `iteration` in every parameter group; returns the learning rate."""
    rate = learning_rate(iteration, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = config.optimizer.weight_decay * group["wd_mult"]
    return rate


@torch.no_grad()
def apply_gradients(optimizer: MegatronOptimizer, *, clip_grad: float) -> Tensor:
    """Clip and step, or leave everything as it is where the gradient is not finite; the host does not wait.

    Returns the gradient's L2 norm over all parameters before clipping, 0-dim float32 on the device: not finite means
    that the step was skipped. Every rank gets the same answer: the gradients were summed over the data-parallel group
    and the norm over the tensor-parallel one. (With float16 the host waits once: megatron-core keeps the loss scale
    there.)
    """
    parts = optimizer.chained_optimizers
    if optimizer.prepare_grads():
        return torch.full((), float("nan"), device=parts[0].get_loss_scale().device)
    norm = global_norm(parts)
    excess = torch.clamp((norm + 1e-6) / clip_grad, min=1.0) if clip_grad > 0.0 else torch.ones_like(norm)
    for part in parts:
        _step(part, norm, excess)
    return norm


def global_norm(parts: Sequence[MegatronOptimizer]) -> Tensor:
    """L2 norm of the gradients of all parameters, each counted once, 0-dim float32 on the device.

    A rank's shard of the distributed optimizer may hold only parameters that another tensor-parallel rank counts; it
    adds 0.
    """
    group = parts[0].get_grad_stats_parallel_group()
    grads = [grad for part in parts for grad in gradients_of_norm(part)]
    square = torch.zeros((), device=parts[0].get_loss_scale().device)
    if grads:
        square = torch.stack(torch._foreach_norm(grads)).square().sum()
    dist.all_reduce(square, group=group)
    return square.sqrt()


def _step(part: MegatronOptimizer, norm: Tensor, excess: Tensor) -> None:
    """One optimizer's step with gradients divided by `excess`, unless `norm` is not finite."""
    # The fused kernel divides as it reads, and does nothing where the flag is set: no further pass over the gradients.
    kernel: Any = part.optimizer  # its class does not declare what torch.amp sets on it
    kernel.grad_scale, kernel.found_inf = excess, torch.isfinite(norm).logical_not().float()
    part.step_with_ready_grads()
