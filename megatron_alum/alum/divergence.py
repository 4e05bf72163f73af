"""The divergence l(f(x), f(x + delta)) of whatever a forward function returns, and what its rows are averaged over.

Outputs are logits [..., C], or a tuple, list or mapping of them (a masked-token head and a next-sentence head, the
start and the end of an answer); None entries are skipped. A row divergence compares two tensors row by row, and
`Samples` says which sample each row belongs to: the ascent maximises the loss of each sample separately, the outer loss
is a mean over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Outputs = Any


class RowDivergence(Protocol):
    """Row by row, differentiable in what is not detached; see `reference_divergence`."""

    def __call__(self, clean: Tensor, adversarial: Tensor, *, symmetric: bool, detach_targets: bool) -> Tensor:
        """[...] from logits [..., C]."""


@dataclass(frozen=True)
class Samples:
    """Which sample every token and every compared row belongs to; the index `count` stands for no sample."""

    count: int
    """number of samples"""
    of_tokens: Tensor
    """int64, the leading shape of x"""
    of_rows: tuple[Tensor, ...]
    """int64, the leading shape of each compared output, in their order"""

    @classmethod
    def batch_first(cls, x: Tensor, outputs: Outputs) -> Samples:
        """For x [B, S, H] and outputs whose first dimension is the batch size.

        With several sequences per sample (multiple choice) x is [B * choices, S, H], and the batch size is that of the
        outputs.
        Raises: ValueError when the outputs' first dimensions differ, or do not divide x's.
        """
        rows = tensors(outputs)
        count = rows[0].shape[0]
        found = [part.shape[0] for part in rows]
        if any(size != count for size in found) or count == 0 or x.shape[0] % count:
            raise ValueError(
                f"`samples` must be given unless the first dimension of every output is the batch size ({x.shape[0]}), "
                f"but they are {found} instead."
            )
        sequence = torch.arange(x.shape[0], device=x.device) // (x.shape[0] // count)
        leading = [part.shape[:-1] if part.dim() > 1 else part.shape for part in rows]
        index = torch.arange(count, device=x.device)
        of_rows = tuple(index.view(-1, *[1] * (len(shape) - 1)).expand(shape) for shape in leading)
        return cls(count, sequence.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1]), of_rows)


def reference_divergence(clean: Tensor, adversarial: Tensor, *, symmetric: bool, detach_targets: bool) -> Tensor:
    """KL of every row of logits [..., C], float32 [...] (float64 for float64 logits).

    One-way: KL(clean || adversarial), gradient to `clean` only without `detach_targets`. Symmetric: that plus
    KL(adversarial || clean), where `detach_targets` stops the gradient of each left-hand side. Computed in float64:
    the logits of the two passes differ only in their last digits, which float32 would lose.
    """
    log_p, log_q = clean.double().log_softmax(-1), adversarial.double().log_softmax(-1)
    stop: Callable[[Tensor], Tensor] = torch.Tensor.detach if detach_targets else lambda t: t
    target_p, target_q = stop(log_p), stop(log_q)
    rows = (target_p.exp() * (target_p - log_q)).sum(-1)
    if symmetric:
        rows = rows + (target_q.exp() * (target_q - log_p)).sum(-1)
    return rows.to(torch.promote_types(clean.dtype, torch.float32))


def mean_of_rows(rows: Tensor, samples: Tensor, count: int, *, finite: Tensor | None = None) -> Tensor:
    """Mean over the rows that belong to a sample, 0-dim; rows of samples that are not `finite` (bool [count]) add 0.

    `rows` and `samples` have the same shape. 0 where no row belongs to a sample.
    """
    owned = samples < count
    kept = owned if finite is None else torch.cat([finite, finite.new_zeros(1)])[samples]
    return torch.where(kept, rows, torch.zeros_like(rows)).sum() / owned.sum().clamp(min=1)


def sum_of_samples(rows: Tensor, samples: Tensor, count: int) -> Tensor:
    """Sum over the samples of the mean over each sample's rows, 0-dim: its gradient holds that of every sample."""
    flat = samples.flatten()
    sizes = torch.zeros(count + 1, dtype=rows.dtype, device=rows.device)
    sizes = sizes.index_add(0, flat, torch.ones_like(flat, dtype=rows.dtype)).clamp(min=1)
    shares = (rows / sizes[samples]).flatten()
    return torch.where(flat < count, shares, torch.zeros_like(shares)).sum()


def tensors(outputs: Outputs) -> list[Tensor]:
    """The tensors of an output, in order; None entries dropped."""
    if isinstance(outputs, Tensor):
        return [outputs]
    assert isinstance(outputs, (Mapping, Sequence)), f"outputs must be tensors, not {type(outputs).__name__}"
    return [part for part in (outputs.values() if isinstance(outputs, Mapping) else outputs) if part is not None]
