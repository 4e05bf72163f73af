"""Algorithm 1 of ALUM (Liu et al. 2020), lines 3 to 6, as one function that reads like the paper.

The caller owns the model: it hands in x and the function from x + delta to the loss that is maximised.

    for (x, y) in batches:                                              line 2
        delta ~ N(0, sigma^2 I)                                         line 3   perturb, from the start
        for m in 1..K:                                                  line 4
            g = gradient of l(f(x), f(x + delta)) in delta              line 5   gradient_in_delta
            delta = project(delta + eta g)                              line 6   perturb, along g
        minimise l(f(x), y) + alpha l(f(x), f(x + delta))               line 8   the caller, or regularizer.py

Line 2 refers to one example: l is its own loss, and g its gradient. Samples do not interact, so the gradient of the SUM
of their losses holds each sample's own g; a caller that divides its inner loss by the batch size takes smaller steps.

The parameters are frozen on lines 4 to 6: g needs none of their gradients, and fused weight-gradient accumulation would
write them anyway. Nothing here waits for the device, prints or keeps state between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megatron_alum.config.alum import AlumConfig
from megatron_alum.reference.noise import NoiseKey

Start = Tensor | NoiseKey
InnerLoss = Callable[[Tensor], Tensor]
Agree = Callable[[Tensor], Tensor]
"""bool [samples] finite flags -> the same, true only where true on every rank that holds a part of the sample"""


class Perturb(Protocol):
    """One step on delta and the sum with x: `megatron_alum.reference.tokens.perturb`, or the fused one of `ops`."""

    def __call__(
        self,
        x: Tensor,
        delta: Any,  # Start
        grad: Tensor | None,
        *,
        step_size: float,
        epsilon: float,
        projection: str,
        mask: Tensor | None,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x + delta', delta', raw sums [6]); without `grad` there is neither a step nor a projection. A token whose
        gradient is not finite keeps its delta."""


@dataclass(frozen=True)
class Ascent:
    """The result of lines 3 to 6."""

    delta: Tensor
    """the perturbation, x's shape, float32 (float64 for float64 x): zero where the mask is False, the random start in
    samples whose gradient was not finite"""
    finite: Tensor
    """bool [num_segments]: False for samples with a gradient that was not finite; their divergence must not count"""
    sums: Tensor
    """[6] raw sums of the last perturbation, for `reference.tokens.perturbation_statistics`; add up the sums of all
    ranks and micro-batches first"""
    inner_start: Tensor | None
    """0-dim: the inner loss at the random start; None for K = 0, which evaluates none"""
    inner_last: Tensor | None
    """0-dim: the inner loss before the last step"""
    nonfinite: Tensor
    """0-dim: number of samples that are not finite"""


def identity(finite: Tensor) -> Tensor:
    """`agree` for a process that holds whole samples."""
    return finite


def ascend(
    x: Tensor,
    inner_loss: InnerLoss,
    *,
    start: Start,
    config: AlumConfig,
    perturb: Perturb,
    segments: Tensor | None = None,
    num_segments: int = 1,
    mask: Tensor | None = None,
    agree: Agree = identity,
    parameters: Iterable[nn.Parameter] = (),
    plain_backward: bool = False,
    gradient_scale: float | Tensor = 1.0,
) -> Ascent:
    """The perturbation of x [..., H] that K = `config.num_ascent_steps` gradient steps on `inner_loss` find.

    `inner_loss` takes x + delta and returns a 0-dim loss; it closes over clean outputs, labels and dropout masks.
    `start` is a tensor like x, or a NoiseKey. `segments` (int64, x's leading shape) says which of the `num_segments`
    samples a token belongs to, None for one sample; `num_segments` itself marks tokens that belong to none. `mask`
    (bool, x's leading shape) is False where nothing may be perturbed. No gradient reaches x or `parameters`, those of
    the model. `plain_backward` differentiates by `.backward()`, which reentrant activation recomputation needs; then
    every trained parameter must be in `parameters`, or it would accumulate gradients. `gradient_scale` multiplies the
    loss before backward and is divided out of g: a power of two that keeps float16 gradients from vanishing.
    """
    assert (segments is None and num_segments == 1) or (segments is not None and segments.shape == x.shape[:-1])
    x = x.detach()
    options: dict[str, Any] = {name: getattr(config, name) for name in ("step_size", "epsilon", "projection")}
    options |= {"mask": mask, "out_dtype": x.dtype}
    losses: list[Tensor] = []
    finite = torch.ones(num_segments, dtype=torch.bool, device=x.device)
    with frozen(parameters), torch.enable_grad():
        x_adv, random_start, sums = perturb(x, start, None, **options)  # line 3
        delta = random_start
        for _ in range(config.num_ascent_steps):  # line 4
            loss, g = gradient_in_delta(inner_loss, x_adv, plain_backward, gradient_scale)  # line 5
            finite = finite & agree(_finite_segments(g, segments, num_segments, mask))
            x_adv, delta, sums = perturb(x, delta, g, **options)  # line 6
            losses.append(loss)
    return Ascent(
        delta=torch.where(_of_tokens(finite, segments, delta), delta, random_start),
        finite=finite,
        sums=sums,
        inner_start=losses[0] if losses else None,
        inner_last=losses[-1] if losses else None,
        nonfinite=(~finite).sum(),
    )


def gradient_in_delta(
    inner_loss: InnerLoss, x_adv: Tensor, plain_backward: bool, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """(inner loss, its gradient with respect to x + delta, which is that with respect to delta, float32 or float64)."""
    leaf = x_adv.detach().requires_grad_(True)
    loss = inner_loss(leaf)
    if plain_backward:
        (loss * scale).backward()
        grad = leaf.grad
    else:
        (grad,) = torch.autograd.grad(loss * scale, leaf, allow_unused=True)
    assert grad is not None, "the inner loss does not depend on x + delta"
    return loss.detach(), grad.to(torch.promote_types(leaf.dtype, torch.float32)) / scale


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Turn `requires_grad` off for `parameters` in the body; restore each value afterwards, even after an error."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _finite_segments(g: Tensor, segments: Tensor | None, num_segments: int, mask: Tensor | None) -> Tensor:
    """bool [num_segments]: g is finite at every token of the sample that may be perturbed."""
    bad = ~torch.isfinite(g).all(-1)
    if mask is not None:
        bad = bad & mask
    if segments is None:
        return ~bad.any().unsqueeze(0)
    found = torch.zeros(num_segments + 1, dtype=torch.int32, device=g.device)  # the last one: tokens of no sample
    found = found.index_add(0, segments.flatten(), bad.flatten().to(torch.int32))
    return found[:num_segments] == 0


def _of_tokens(flags: Tensor, segments: Tensor | None, like: Tensor) -> Tensor:
    """The flag [num_segments] of each token's sample, as a tensor that broadcasts over `like` [..., H]."""
    if segments is None:
        return flags.view([1] * like.dim())
    return torch.cat([flags, flags.new_ones(1)])[segments].unsqueeze(-1)
