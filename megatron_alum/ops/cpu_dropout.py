"""Dropout that does not dominate a step on the CPU, attention with it, and dropout whose mask is drawn beforehand.

torch's CPU dropout draws one Bernoulli variable per element, one after the other: about 8 ns forward, a seventh of a
small BERT's step. Here one draw from torch's default generator seeds a mask that is a function of the element's
position (csrc/ops/dropout.h): 0.3 ns, on all threads, and nothing is kept for backward but the seed. The dropping
probability is a multiple of 2^-16, and the scale matches the probability actually used. Other devices use torch's own
kernels, and a mask where it is drawn beforehand.

megatron-core's RNG tracker and activation recomputation swap the default generator's state and so determine these masks
just as they do torch's own.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.ops import dispatch
from megatron_alum.reference import dropout as reference


def dropout(
    x: Tensor, probability: float, *, training: bool = True, drawn: Tensor | None = None, impl: str = "auto"
) -> Tensor:
    """`x` with each element zeroed with `probability` and the rest scaled up; the same tensor when not training.

    `drawn` decides which elements; by default the generator does, now. See `draw_dropout`.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"`probability` must be in [0, 1], but is {probability} instead.")
    if not training or probability == 0.0:
        return x
    if probability == 1.0 or (drawn is None and x.device.type != "cpu"):
        return F.dropout(x, probability)
    return _Dropout.apply(x, draw_seed() if drawn is None else drawn, probability, impl)


def draw_dropout(shape: torch.Size, probability: float, device: torch.device) -> Tensor:
    """What `dropout(x, probability, drawn=...)` of an x of this shape needs, from the device's default generator: a
    seed (0-dim int64) on the CPU, elsewhere a mask (bool, True = kept).

    For a dropout inside a compiled graph whose generator is not to be the one of the graph's other draws.
    """
    return draw_seed() if device.type == "cpu" else draw_mask(shape, probability, device)


def draw_seed() -> Tensor:
    """0-dim int64 on the CPU, one draw from torch's default generator: what decides a mask of `seeded_dropout`."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)


def draw_mask(shape: torch.Size, probability: float, device: torch.device) -> Tensor:
    """bool of this shape, False with `probability`."""
    return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1.0 - probability)


def seeded_dropout(x: Tensor, seed: Tensor, probability: float, *, impl: str = "auto") -> Tensor:
    """`dropout` on the CPU with the mask of `seed`, for derivatives written by hand: linear in x, so the derivative of
    a call is the same call. 0 < probability < 1; autograd does not record it.
    """
    run = reference.dropout if dispatch.select(impl, x) == "reference" else torch.ops.megatron_alum.dropout
    return run(x, seed, threshold_of(probability))


def threshold_of(probability: float) -> int:
    """The number of 2^16 that comes nearest to a probability, which is neither 0 nor 1."""
    return min(max(1, round(probability * reference.LEVELS)), reference.LEVELS - 1)


def attention_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, probability: float, *, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T + mask) v [..., S, D], with dropout of the weights.

    mask broadcasts over [..., S, S]: bool, True = may be attended to, or float, which is added; None = all. `scale` is
    1 / sqrt(D) by default. Written out because torch's scaled_dot_product_attention on a CPU is over ten times slower
    with dropout than without (1,027 ms against 76 ms for B16 S128, 4 heads of 64, forward and backward).
    """
    factor = 1.0 / math.sqrt(query.size(-1)) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-1, -2))
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(mask.logical_not(), torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return torch.matmul(dropout(torch.softmax(scores, dim=-1), probability), value)


class _Dropout(torch.autograd.Function):
    """By a seed or a mask. Linear, so it is its own derivative. (A derivative registered with the operator would cost
    more than the operator itself.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drawn: Tensor, probability: float, impl: str) -> Tensor:
        ctx.save_for_backward(drawn)
        ctx.how = probability, impl
        if drawn.dtype == torch.bool:
            # x * mask * scale in one kernel, the scale in float32. torch's own derivative of it rounds the scale.
            return torch.ops.aten.native_dropout_backward(x, drawn, 1.0 / (1.0 - probability))
        return seeded_dropout(x, drawn, probability, impl=impl)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (drawn,) = ctx.saved_tensors
        return _Dropout.apply(grads[0], drawn, *ctx.how), None, None, None
