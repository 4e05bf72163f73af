"""What iteration t of a run looks like: its learning rate and its phase, as functions of t alone.

Iterations count from 1. Because nothing here keeps state, a resumed run continues its schedules exactly.
"""

from __future__ import annotations

from typing import Literal

from megatron_alum.config.run import RunConfig

Phase = Literal["standard", "alum"]


def learning_rate(iteration: int, config: RunConfig) -> float:
    """Linear warm-up to --lr over the first fraction of the run, then linear decay towards --min-lr at its end.

    With w warm-up iterations of T: lr * t / w up to t = w, then min + (lr - min) (T - (t - 1)) / (T - w), which is lr
    at t = w + 1 and one step above min at t = T, so that the last iteration still learns.
    """
    options, total = config.optimizer, config.training.train_iters
    warmup = int(options.lr_warmup_fraction * total)
    if iteration <= warmup:
        return options.lr * iteration / warmup
    remaining = max(0, total - (iteration - 1)) / (total - warmup)
    return options.min_lr + (options.lr - options.min_lr) * remaining


def phase_of(iteration: int, config: RunConfig) -> Phase:
    """Whether `iteration` trains on the standard objective or with the adversarial term."""
    return "alum" if iteration >= config.first_alum_iteration else "standard"
