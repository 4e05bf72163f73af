"""Held-out masked-word loss of an exported network: clean, under uniform noise, under PGD, and on other text.

Noise and attack live in the same L-infinity ball around the word embeddings: PGD starts from the noise and takes
`steps` steps of 2.5 r / steps along the sign of the gradient, projected onto the ball (Madry et al. 2018). No dropout;
the same samples, masks and noise for every arm of a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_alum.alum import frozen
from megatron_alum.cli.pretrain import options_of_start
from megatron_alum.config.cli import parse_config
from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.dataset import PretrainingDataset, open_datasets
from megatron_alum.data.sampling.loader import draw
from megatron_alum.finetune.runs.attack import STEP_FACTOR
from megatron_alum.objective.losses import Objective
from megatron_alum.objective.micro_batch import MicroBatch, batch_plan, load_all
from megatron_alum.parallel import joined
from megatron_alum.study.corpora import other_prefix, training_prefix
from megatron_alum.study.plan import StudyPlan
from megatron_alum.study.pretraining import arguments, hf_folder
from megatron_alum.study.rows import Row
from megatron_alum.training.state import TrainState, build_state


@dataclass
class Sums:
    """A loss summed over masked words."""

    loss: float = 0.0
    """nats"""
    words: int = 0
    """masked ones"""

    @property
    def mean(self) -> float:
        """Nats a word."""
        return self.loss / self.words


def probe(plan: StudyPlan, work: Path, seed: int, arm: str) -> Iterator[Row]:
    """All held-out losses of one arm."""
    config = probe_config(plan, work, seed, hf_folder(plan, work, seed, arm))
    with joined(config.parallel) as groups:
        state = build_state(config, groups)
        state.network.eval()
        held_out = state.datasets.valid
        if held_out is None:
            raise ValueError("`pretraining` must leave documents for validation (split), but leaves none.")
        generator = torch.Generator(device=groups.device).manual_seed(seed)
        clean = micro_batches(state, held_out, plan.probes.batches)
        yield {"measure": "loss-clean", "value": _mean(state.objective, clean)}
        for radius in plan.probes.radii:
            noise, attacked = Sums(), Sums()
            for micro in clean:
                losses = attack(state.objective, micro, radius, steps=plan.probes.steps, generator=generator)
                _add(noise, micro, losses[0])
                _add(attacked, micro, losses[1])
            yield {"measure": "loss-noise", "radius": radius, "value": noise.mean}
            yield {"measure": "loss-pgd", "radius": radius, "value": attacked.mean}
        other = micro_batches(state, _other_text(config, work), plan.probes.batches)
        yield {"measure": "loss-other-text", "value": _mean(state.objective, other)}


def probe_config(plan: StudyPlan, work: Path, seed: int, model: Path) -> RunConfig:
    """A run that starts from an exported network and saves nothing; dry, since it never trains."""
    kept = {name: value for name, value in plan.pretraining.items() if name != "init-from"}
    own = {"data-path": training_prefix(work), "seed": seed, "init-from": model, "dry-run": True}
    return parse_config(RunConfig, arguments({**kept, **own, "alum-alpha": 0}), infer=options_of_start)


def micro_batches(state: TrainState, dataset: PretrainingDataset, count: int) -> list[MicroBatch]:
    """The micro-batches of the first `count` global batches of a text."""
    plan, device = batch_plan(state.config, state.groups), state.groups.device
    drawn = (draw(dataset, plan, number * plan.global_batch_size).micro_batches for number in range(count))
    return [micro for some in drawn for micro in load_all(some, state.config, device, is_adversarial=False)]


def loss_from(objective: Objective, x: Tensor, micro: MicroBatch) -> Tensor:
    """Sum of the masked-word losses from (perturbed) word embeddings [T, 1, H]."""
    hidden = objective.model.encode_rows(x, micro.whole.inputs)
    rows = objective.whole_logits.heads(hidden, micro.whole.inputs).rows
    labels = micro.whole.batch.masked_labels
    return objective.whole_logits.mlm(rows, labels, weights=torch.ones(labels.shape, device=labels.device))


def attack(
    objective: Objective, micro: MicroBatch, radius: float, *, steps: int, generator: torch.Generator
) -> tuple[float, float]:
    """(loss at the random start, loss after PGD) of a micro-batch, summed over its masked words."""
    network = objective.model
    with frozen(network.parameters()):
        x = network.embed(micro.whole.inputs).detach()
        delta = torch.empty_like(x).uniform_(-radius, radius, generator=generator)
        start = None
        for _ in range(steps):
            delta.requires_grad_(True)
            loss = loss_from(objective, x + delta, micro)
            start = float(loss) if start is None else start
            (grad,) = torch.autograd.grad(loss, delta)
            delta = (delta.detach() + STEP_FACTOR * radius / steps * grad.sign()).clamp(-radius, radius)
        with torch.no_grad():
            end = float(loss_from(objective, x + delta, micro))
    assert start is not None
    return start, end


def _other_text(config: RunConfig, work: Path) -> PretrainingDataset:
    """Samples of all documents of the other text."""
    data: Any = replace(config.data, data_path=(str(other_prefix(work)),), split="1")
    batch = config.training.global_batch_size
    length, seed = config.model.seq_length, config.training.seed
    kind = config.model.model_type
    return open_datasets(data, model_type=kind, seq_length=length, train_samples=batch, seed=seed).train


@torch.no_grad()
def _mean(objective: Objective, batches: list[MicroBatch]) -> float:
    total = Sums()
    for micro in batches:
        x = objective.model.embed(micro.whole.inputs)
        _add(total, micro, float(loss_from(objective, x, micro)))
    return total.mean


def _add(sums: Sums, micro: MicroBatch, loss: float) -> None:
    sums.loss += loss
    sums.words += micro.whole.batch.num_masked_tokens
