"""Losses on the held-out split: the same samples every time, without dropout and without the adversarial term."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_alum.data.sampling.loader import draw
from megatron_alum.data.sampling.placement import BatchPlan, Counts
from megatron_alum.objective.micro_batch import load_all
from megatron_alum.training.parameter_gather import wait_for_all
from megatron_alum.training.pipeline import run_over_stages
from megatron_alum.training.state import TrainState

ONES = Counts(masked=1, labelled=1, adversarial_masked=1, adversarial_sequences=1, tokens=1, squared_lengths=1)
"""denominators that leave the sums as they are"""


@torch.no_grad()
def validate(state: TrainState, plan: BatchPlan) -> dict[str, float | None] | None:
    """{"lm_loss", "nsp_loss"}: means over the first --eval-iters global batches; None without held-out documents.

    nsp_loss is None where the objective has no sentence pairs.

    Collective over all ranks. Draws nothing from any generator, so that it does not affect the training.
    """
    dataset = state.datasets.valid
    if dataset is None:
        return None
    state.watch.enter(f"validating after iteration {state.iteration}")
    device, pairs = state.groups.device, state.objective.has_pairs
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    masked = labelled = 0
    wait_for_all(state.model)
    state.model.eval()
    for number in range(state.config.training.eval_iters):
        batches = draw(dataset, plan, number * plan.global_batch_size)
        micro_batches = load_all(batches.micro_batches, state.config, device, is_adversarial=False)
        if state.groups.pp_size > 1:
            rows = [run_over_stages(state.objective, state.model, micro_batches, ONES, scale=None)]
        else:
            rows = [state.objective.standard(micro, ONES).logged for micro in micro_batches]
        for row in rows:
            sums += torch.stack((row["lm_loss"], row["nsp_loss"] if pairs else torch.zeros((), device=device)))
        masked, labelled = masked + batches.counts.masked, labelled + batches.counts.labelled
    state.model.train()
    dist.all_reduce(sums, group=state.groups.world)
    lm_sum, nsp_sum = (sums / state.groups.tp_size).tolist()  # tensor-parallel ranks hold equal sums
    return {"lm_loss": lm_sum / masked, "nsp_loss": nsp_sum / labelled if pairs else None}
