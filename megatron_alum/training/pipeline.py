"""The standard objective over pipeline stages, by megatron-core's 1F1B schedule.

Every stage holds consecutive layers, the first one also the embedding, the last one also the heads. Hidden states
[T(/tp), 1, H] travel forward and their gradients back; a stage runs as many forward passes ahead as there are stages
after it. All stages load all micro-batches (each layer needs the lengths), and only the last one has losses.

The adversarial phase is refused by RunConfig: its ascent would send delta's gradient through all stages and back once
more for each micro-batch and step, which 1F1B cannot interleave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_without_interleaving
from torch import Tensor

from megatron_alum.data.sampling.placement import Counts
from megatron_alum.objective.losses import Objective
from megatron_alum.objective.micro_batch import MicroBatch


def run_over_stages(
    objective: Objective,
    model: DistributedDataParallel,
    micro_batches: Sequence[MicroBatch],
    counts: Counts,
    *,
    scale: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """Forward passes of all micro-batches and, given the `scale` of the loss, their backward passes.

    Returns the logged losses summed over the micro-batches, 0 on stages that have none. Collective over the stages.
    """
    no_tokens = torch.zeros((), dtype=torch.int, device=objective.model.groups.device)

    def forward(batches: Iterator[MicroBatch], _model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        micro = next(batches)

        def losses(hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            result = objective.standard_losses(hidden, micro, counts)
            return result.loss if scale is None else scale(result.loss), no_tokens, result.logged

        hidden = objective.encoded(micro)
        assert isinstance(hidden, Tensor), "stages encode every position"
        return hidden, losses

    rows = forward_backward_pipelining_without_interleaving(
        forward_step_func=forward,
        data_iterator=iter(micro_batches),
        model=model,
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].whole.batch.tokens.numel(),  # the same for all: see `load_all`
        micro_batch_size=1,
        forward_only=scale is None,
    )
    names = ("lm_loss", "nsp_loss") if objective.has_pairs else ("lm_loss",)
    zero = torch.zeros((), device=no_tokens.device)
    return {name: sum((row[name] for row in rows), start=zero) for name in names}
