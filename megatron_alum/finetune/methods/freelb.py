"""FreeLB's training step (Zhu et al. 2020, Algorithm 1), the only method that is not a divergence.

Each of K passes computes the labels' loss at the current perturbation; its backward gives both the parameters'
gradient, which is accumulated, and the perturbation's, which moves it. The perturbation starts uniform in a ball of
the sequence's size, moves by a normalised gradient and is projected onto an L2 ball. Dropout masks are those of the
first pass throughout.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megatron_alum.alum import TorchDropoutState
from megatron_alum.alum.dropout import replayed
from megatron_alum.finetune.methods.embeddings import EmbeddingSplit, perturbable
from megatron_alum.finetune.methods.presets import FreeLbConfig


class HasLabelsLoss(Protocol):
    """The part of AlumTrainer that this step uses."""

    accelerator: Any

    def noise_seed(self) -> int:
        """A seed of this micro-batch and process."""

    def labels_loss(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        """The labels' loss of a micro-batch, as a share of the optimizer step."""

    def compute_loss_context_manager(self) -> Any:
        """Autocast and the like."""


def freelb_backward(
    trainer: HasLabelsLoss,
    model: nn.Module,
    inputs: dict[str, Any],
    num_items_in_batch: Tensor | int | None,
    split: EmbeddingSplit,
    config: FreeLbConfig,
) -> Tensor:
    """Run the K passes of one micro-batch, backward included; the mean loss, detached, as Trainer.training_step."""
    mask = perturbable(inputs).unsqueeze(-1)
    with torch.no_grad():
        delta = uniform_start(split.embed(inputs), mask, config.init_magnitude, trainer.noise_seed())
    dropout = TorchDropoutState()
    snapshot, total = dropout.snapshot(), torch.zeros((), device=delta.device)
    for step in range(config.num_steps):
        last = step == config.num_steps - 1
        delta = delta.detach().requires_grad_(True)
        # Gradients cross the processes once, with the last pass.
        with contextlib.nullcontext() if last else trainer.accelerator.no_sync(model):
            with trainer.compute_loss_context_manager(), replayed(dropout, snapshot if step else None):
                with split.entered(split.embed(inputs) + delta, inputs) as given:
                    loss = trainer.labels_loss(model, given, num_items_in_batch) / config.num_steps
            trainer.accelerator.backward(loss)
        total = total + loss.detach()
        assert delta.grad is not None
        delta = moved(delta.detach(), delta.grad, mask, config)
    return total


def uniform_start(x: Tensor, mask: Tensor, magnitude: float, seed: int) -> Tensor:
    """Uniform in [-1, 1] times magnitude / sqrt(tokens * H) per sequence, 0 at pads; x [B, S, H], mask [B, S, 1].

    Has its own generator, so that dropout draws what it would without it.
    """
    generator = torch.Generator(device=x.device).manual_seed(seed)
    dimensions = mask.sum(dim=(1, 2), keepdim=True).clamp(min=1) * x.shape[-1]
    noise = torch.empty_like(x, dtype=torch.float32).uniform_(-1, 1, generator=generator)
    return torch.where(mask, noise * (magnitude / dimensions.sqrt()), torch.zeros_like(noise))


def moved(delta: Tensor, grad: Tensor, mask: Tensor, config: FreeLbConfig) -> Tensor:
    """delta + step * g / ||g|| per sequence, projected; a sequence with a non-finite gradient keeps its delta."""
    grad = torch.where(mask, grad.float(), torch.zeros_like(delta))
    norm = _norm(grad)
    usable = torch.isfinite(norm) & (norm > 0)
    result = torch.where(usable, delta + config.step_size * grad / norm, delta)
    if config.max_norm > 0:
        result = result * (config.max_norm / _norm(result).clamp(min=config.max_norm))
    return result


def _norm(x: Tensor) -> Tensor:
    """L2 norm of each sequence, [B, 1, 1]."""
    return x.flatten(1).norm(dim=1)[:, None, None]
