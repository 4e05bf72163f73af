"""One iteration: from the micro-batches of a global batch to one optimizer step.

    set the learning rate -> for each micro-batch: forward, loss, backward -> reduce gradients -> finite? clip, step

No input or output, no argument parsing, no branches on the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.placement import Counts
from megatron_alum.objective.losses import MicroLoss, Objective
from megatron_alum.objective.micro_batch import MicroBatch
from megatron_alum.objective.schedule import Phase, phase_of
from megatron_alum.training.control import Watch
from megatron_alum.training.optimizer import apply_gradients, set_learning_rate
from megatron_alum.training.parameter_gather import start, wait_for_tables
from megatron_alum.training.pipeline import run_over_stages


@dataclass
class Trainable:
    """What a step needs and changes, and nothing else: a benchmark steps without data, layout or place in a run."""

    config: RunConfig
    """the run"""
    model: DistributedDataParallel
    """the data-parallel wrapper of the network"""
    optimizer: MegatronOptimizer
    """Adam with its master weights"""
    objective: Objective
    """the losses"""
    watch: Watch
    """records the current operation"""


@dataclass(frozen=True)
class StepResult:
    """What one iteration did."""

    phase: Phase
    """objective it trained on"""
    logged: dict[str, Tensor]
    """device tensors of this rank that add up over data-parallel ranks, as in MicroLoss"""
    learning_rate: float
    """of this iteration"""
    grad_norm: Tensor
    """global L2 norm before clipping, 0-dim on the device; where it is not finite the step was skipped"""


def train_step(state: Trainable, micro_batches: Sequence[MicroBatch], counts: Counts, iteration: int) -> StepResult:
    """Train on one global batch; `counts` are its rows over all ranks. Collective over all ranks."""
    phase = phase_of(iteration, state.config)
    state.model.zero_grad_buffer()
    state.optimizer.zero_grad()
    rate = set_learning_rate(state.optimizer, iteration, state.config)
    wait_for_tables(state.model)
    with state.watch.own_work():
        logged = accumulate_gradients(state, micro_batches, counts, iteration)
    state.watch.enter(f"reducing the gradients of iteration {iteration}")
    finalize_model_grads([state.model])
    state.watch.enter(f"clipping and stepping in iteration {iteration}")
    norm = apply_gradients(state.optimizer, clip_grad=state.config.optimizer.clip_grad)
    start(state.model)
    return StepResult(phase, logged, rate, norm)


def accumulate_gradients(
    state: Trainable, micro_batches: Sequence[MicroBatch], counts: Counts, iteration: int
) -> dict[str, Tensor]:
    """Forward and backward passes of all micro-batches; what they log, added up."""
    if state.objective.model.groups.pp_size > 1:
        state.watch.enter(f"training in stages on the micro-batches of iteration {iteration}")
        scale = state.optimizer.get_loss_scale()
        return run_over_stages(
            state.objective, state.model, micro_batches, counts, scale=lambda loss: scaled(loss, scale)
        )
    logged: dict[str, Tensor] = {}
    for number, micro in enumerate(micro_batches):
        state.watch.enter(f"training on micro-batch {number} of iteration {iteration}")
        is_last = number == len(micro_batches) - 1
        with nullcontext() if is_last else state.model.no_sync():
            result = micro_batch_loss(state, micro, counts, iteration)
            backward(result.loss, state.optimizer.get_loss_scale())
        for name, value in result.logged.items():
            logged[name] = logged[name] + value if name in logged else value
    return logged


def micro_batch_loss(state: Trainable, micro: MicroBatch, counts: Counts, iteration: int) -> MicroLoss:
    """The objective of this iteration's phase on one micro-batch."""
    if phase_of(iteration, state.config) == "standard":
        return state.objective.standard(micro, counts)
    scale = state.optimizer.get_loss_scale()
    return state.objective.adversarial(micro, counts, iteration=iteration, loss_scale=scale)


def backward(loss: Tensor, loss_scale: Tensor) -> None:
    """Backward of the scaled loss."""
    scaled(loss, loss_scale).backward()


def scaled(loss: Tensor, loss_scale: Tensor) -> Tensor:
    """loss x loss_scale; one that is not finite makes every gradient NaN, so that all ranks skip the step."""
    finite = torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
    return loss * finite * loss_scale.squeeze()
