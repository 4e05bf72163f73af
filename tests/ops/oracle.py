"""The ops written plainly a second time: what float64 autograd gives, and what eager torch gives in the logits' own
dtype.

Nothing here is shared with megatron_alum.ops. Letters: N rows, V columns; a, b clean and adversarial logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FLOAT32_TINY = torch.finfo(torch.float32).tiny
"""A column that is -infinity on one side makes the divergence infinite by its probability on the other. Below this a
probability is 0 in float32 and the column counts nothing; in float64 that is so from 1e-308 on."""


class Divergence(NamedTuple):
    """Value [N] and gradients [N, V] of its sum."""

    kl: Tensor
    to_clean: Tensor
    to_adv: Tensor


def detached_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(P.detach() || Q) + KL(Q.detach() || P), two one-way divergences as the released code sums them."""
    p, q = a.log_softmax(1), b.log_softmax(1)
    one, other = p.detach(), q.detach()
    return (one.exp() * (one - q)).sum(1) + (other.exp() * (other - p)).sum(1)


def full_kl(a: Tensor, b: Tensor) -> Tensor:
    """sum (p - q)(log p - log q), gradients through everything."""
    p, q = a.log_softmax(1), b.log_softmax(1)
    return ((p.exp() - q.exp()) * (p - q)).sum(1)


def one_sided_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(P || Q), exact for nearly equal logits: the sum of p h + q - p, by its series near h = 0."""
    p, q = a.log_softmax(1), b.log_softmax(1)
    h = p - q
    series = h * h * (1 / 2 - h / 6 + h * h / 24 - h**3 / 120 + h**4 / 720)
    return torch.where(h.abs() < 0.01, p.exp() * series, p.exp() * h + (q.exp() - p.exp())).sum(1)


def any_size(a: Tensor, b: Tensor, one_way: bool, detach: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(divergence [N], gradients of its sum) in float64, written so that no infinity meets a 0."""
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    masked = ((a == -torch.inf) | (b == -torch.inf)) & (torch.maximum(p, q) < FLOAT32_TINY)
    h = torch.where(masked, 0.0, log_p - log_q)
    p_minus_q = torch.where(h >= 0, -p * torch.expm1(-h), q * torch.expm1(h))
    of_p, of_q = (torch.where(x == 0, 0.0, h) for x in (p, q))
    direct = p * of_p - p_minus_q
    series = p * h * h * (1 / 2 - h / 6 + h * h / 24 - h**3 / 120)
    to_p = torch.where(h.abs() < 1e-2, series, direct).sum(1, keepdim=True)
    both = torch.where(p_minus_q == 0, 0.0, p_minus_q * h).sum(1, keepdim=True)
    to_clean, to_adv = (torch.zeros_like(p) if one_way else p_minus_q), -p_minus_q
    if not detach:
        to_clean = to_clean + p * (of_p - to_p)
        to_adv = to_adv if one_way else to_adv - q * (of_q - (to_p - both))
    return (to_p if one_way else both)[:, 0], to_clean, to_adv


def differentiate(function, clean: Tensor, adv: Tensor, *, dtype: torch.dtype, valid: int | None = None) -> Divergence:
    """`function` on the first `valid` columns in `dtype`; gradients of the other columns are 0."""
    a, b = (x.detach().to(dtype).requires_grad_() for x in (clean, adv))
    kl = function(a[:, :valid], b[:, :valid])
    return Divergence(kl.detach(), *torch.autograd.grad(kl.sum(), (a, b)))


def logits(
    rows: int, columns: int, *, difference: float, shift: float = 0.0, scale: float = 2.0, seed: int = 0
) -> tuple:
    """Two float32 [rows, columns] that differ by about `difference` and exactly comparable common `shift`."""
    generator = torch.Generator().manual_seed(seed)
    clean = scale * torch.randn(rows, columns, generator=generator)
    return clean, clean + difference * torch.randn(rows, columns, generator=generator) + shift


def worst_row(found: Tensor, truth: Tensor) -> float:
    """Greatest error of a row relative to its true value: of a number, or of the row's Euclidean norm."""
    found, truth = found.double(), truth.double()
    if found.ndim == 1:
        return ((found - truth).abs() / truth.abs().clamp(min=1e-300)).max().item()
    return ((found - truth).norm(dim=1) / truth.norm(dim=1).clamp(min=1e-300)).max().item()


def far_apart(rows: int, columns: int, *, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two unrelated float32 [rows, columns]: nearly all mass of each in a column of its own."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(rows, columns, generator=generator) for _ in range(2))
