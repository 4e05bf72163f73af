"""Losses on the held-out split: the same samples every time, without dropout and without the adversarial term."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_alum.data.loader import BatchPlan
from megatron_alum.training.objective import Counts, MicroBatch
from megatron_alum.training.pipeline import run_over_stages
from megatron_alum.training.state import TrainState


@torch.no_grad()
def validate(state: TrainState, plan: BatchPlan) -> dict[str, float | None] | None:
    """{"lm_loss", "nsp_loss"}: means over the first --eval-iters global batches; None without held-out documents.

    nsp_loss is None where the objective has no sentence pairs.

    Collective over all ranks. Draws nothing from any generator, so that it leaves no trace in the training.
    """
    dataset = state.datasets.valid
    if dataset is None:
        return None
    state.watch.enter(f"validating after iteration {state.iteration}")
    device = state.groups.device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    ones = Counts(1, 1, 1, 1)
    state.model.eval()
    micro_batches = plan.micro_batches(0)
    for _ in range(state.config.training.eval_iters * plan.num_micro_batches):
        micro = MicroBatch.load(dataset.batch(next(micro_batches)), state.config.alum, device)
        if state.groups.pp_size > 1:
            logged = run_over_stages(state.objective, state.model, [micro], ones, scale=None)
        else:
            logged = state.objective.standard(micro, ones).logged
        sums[0] += logged["lm_loss"]
        sums[1] += logged.get("nsp_loss", 0.0)
        if state.groups.is_last_stage:
            sums[2] += micro.counts.masked
            sums[3] += micro.counts.labelled
    state.model.train()
    dist.all_reduce(sums, group=state.groups.world)  # each value tp times, which cancels below
    lm_sum, nsp_sum, masked, labelled = sums.tolist()
    nsp_loss = nsp_sum / max(labelled, 1.0) if state.objective.has_pairs else None
    return {"lm_loss": lm_sum / max(masked, 1.0), "nsp_loss": nsp_loss}
