"""Row role in plain torch: statistics of a row of clean and adversarial logits, their merge over shards, the gradients.

Letters: N rows, C columns held here, R shards. a, b: clean and adversarial logits; P, Q: their softmax; d = a - b;
h = log(p / q), so that KL(P||Q) + KL(Q||P) = sum (p - q) h. In ALUM d is 1e-6 to 1e-3, and lse(a) - lse(b),
known to 1e-6 only, would drown h. So every row is centred on some c near E_P[d]: u = d - c is formed without rounding
error beyond its own, t = log E_P[exp(-u)] is as small as u, and h = u + t. A record stores c exactly, as the difference
m - n of the greatest clean logit m and a level n of the adversarial ones: unlike c, these two show where a shard lies
that is far below the others. Here n is the rounded lse(b) - log Z, which costs another pass; the kernels take it from
logits near the maximum (csrc/README.md).

A record (one row of one shard) is STATISTICS floats, the same in C++ (csrc/common/row_statistics.h):
    0 maximum    m  = max a                            3 log_ratio  t = log E_P[exp(-u)] = lse(b) - log Z - n
    1 mass       Z  = sum exp(a - m)                   4 mean       E_P[u], so that mean + log_ratio = KL(P||Q)
    2 level      n                                     5 divergence of the shard's own two softmax distributions
and, with labels, 6: the clean logit of the label where this shard holds it, else 0. P and Q are normalised over the
shard; `merge_statistics` gives the record of the whole row exactly, by the chain rule of the divergence over shards.
"""

from typing import NamedTuple

import torch
from torch import Tensor

STATISTICS = 6
"""Floats of a record; one more with labels."""
IGNORED_LABEL = -100
_EMPTY = torch.tensor([-torch.inf, 0, 0, 0, 0, 0])  # of a shard without valid columns
_SERIES_LIMIT = 0.25  # below it h + expm1(-h) is a series because its terms cancel; eight terms reach 1e-16 there


class RowOptions(NamedTuple):
    """What the row functions need besides tensors; the same for every shard except the columns."""

    first_column: int  # global id of column 0 here
    valid_columns: int  # columns from here on are padding of the vocabulary
    one_sided: bool = False  # KL(P||Q) alone instead of the sum of both directions
    detach_targets: bool = True  # each direction moves its second argument only


def working_dtype(logits: Tensor) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def row_statistics(clean: Tensor, adv: Tensor, labels: Tensor | None, options: RowOptions) -> Tensor:
    """Records [N, 6 or 7] of this shard from logits [N, C]. A shard without valid columns has mass 0."""
    dtype = working_dtype(clean)
    rows = clean.shape[0]
    record = torch.zeros(rows, STATISTICS + (labels is not None), dtype=dtype, device=clean.device)
    if options.valid_columns == 0:
        record[:, :STATISTICS] = _EMPTY
        return record
    a, b = (x[:, : options.valid_columns].to(dtype) for x in (clean, adv))
    if rows > 0:
        maximum = a.amax(1)
        # From the clean logits alone, so that the MLM loss survives bad adversarial ones.
        mass = torch.exp(a - maximum[:, None]).sum(1)
        center = torch.logsumexp(a, dim=1) - torch.logsumexp(b, dim=1)
        # Equal rows get the level m itself and so exactly 0; with a large centre the level must keep its digits.
        level = torch.where(center.abs() < 1, maximum - center, torch.logsumexp(b, dim=1) - torch.log(mass))
        u = centred_difference(a, b, maximum, level)
        weight, difference = _weights(a, b, u, maximum, level, torch.zeros_like(level))
        log_ratio = torch.log1p(-difference.sum(1) / mass)
        h = u + log_ratio[:, None]
        weight, difference = (x / mass[:, None] for x in _weights(a, b, h, maximum, level, log_ratio))
        terms = _one_sided_terms(weight, difference, h) if options.one_sided else _product(difference, h)
        mean, divergence = _product(weight, u).sum(1), terms.sum(1)
        divergence = torch.where(torch.isfinite(divergence), divergence, torch.nan)
        columns = torch.stack([maximum, mass, level, log_ratio, mean, divergence], dim=1)
        masked = ((a == -torch.inf) & (b == -torch.inf)).all(1)
        record[:, :STATISTICS] = torch.where(masked[:, None], _EMPTY.to(columns), columns)
    if labels is not None:
        local, owned = local_labels(labels, options)
        record[:, STATISTICS] = torch.where(owned, a.gather(1, local[:, None])[:, 0], 0.0)
    return record


def merge_statistics(records: Tensor, one_sided: bool) -> Tensor:
    """One record per row [N, 6 or 7] from those of R shards [R, N, 6 or 7]; exact, in any order."""
    if records.shape[0] == 1:
        return records[0]
    maximum, mass, level, log_ratio, mean, divergence = (records[..., i] for i in range(STATISTICS))
    top, owner = maximum.max(dim=0)
    total = (mass * torch.exp(maximum - top)).sum(0)
    empty = mass == 0
    # Where another shard has all adversarial mass, its level is used: otherwise the ratio would be as large as the
    # logits and lose its digits.
    of_adv = torch.where(empty, -torch.inf, level + (log_ratio + torch.log(mass)))
    highest, holder = of_adv.max(dim=0)
    owner = torch.where(highest > of_adv.gather(0, owner[None])[0] + 20, holder, owner)
    chosen = level.gather(0, owner[None])[0]
    shift = torch.where(empty, 0.0, _difference_of_differences(maximum, level, top, chosen))
    log_mass = torch.log(mass) - torch.log(total)
    log_clean = (maximum - top) + log_mass
    log_adv = torch.where(empty, -torch.inf, (level - chosen) + (log_ratio + log_mass))
    share = torch.exp(log_clean)
    # Shard-level counterparts of u and t: u_i = shift_i - t_i is the log of the shard's clean over its adversarial
    # mass.
    u = shift - log_ratio
    small = torch.log1p((share * torch.expm1(torch.where(empty, 0.0, -u).clamp(-1, 1))).sum(0))
    ratio = torch.where(((u.abs() < 1) | empty).all(0), small, torch.logsumexp(log_adv, dim=0))
    h = torch.where(empty, 0.0, u + ratio)
    larger = torch.exp(torch.where(h < 0, log_adv - ratio, log_clean))
    p_minus_q = larger * torch.expm1(-h.abs()) * -torch.sign(h)
    offset = shift + mean
    if one_sided:
        merged = (_product(share, divergence) + _one_sided_terms(share, p_minus_q, h)).sum(0)
    else:
        merged = (_product(p_minus_q, offset + ratio) + _product(share - p_minus_q, divergence)).sum(0)
    columns = [top, total, chosen, ratio, _product(share, offset).sum(0), merged]
    if records.shape[-1] > STATISTICS:
        columns.append(records[..., STATISTICS].sum(0))
    return torch.stack(columns, dim=-1)


def row_losses(records: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """(MLM loss [N], divergence [N]) from merged records; zero where the label is ignored, MLM loss zero without
    labels."""
    divergence = torch.where(records[:, 1] == 0, torch.nan, records[:, 5])  # no valid column: no distribution
    if labels is None:
        return torch.zeros_like(divergence), divergence
    kept = labels != IGNORED_LABEL
    mlm_loss = records[:, 0] + torch.log(records[:, 1]) - records[:, STATISTICS]
    return torch.where(kept, mlm_loss, 0.0), torch.where(kept, divergence, 0.0)


def row_gradients(
    clean: Tensor,
    adv: Tensor,
    records: Tensor,
    labels: Tensor | None,
    mlm_weight: Tensor | None,
    kl_weight: Tensor,
    options: RowOptions,
) -> tuple[Tensor, Tensor]:
    """d (sum mlm_weight * mlm + kl_weight * divergence) / d (clean, adv), each [N, C] in the logits' dtype.

    A row of weight 0 gets zeros whatever its logits hold (0 * NaN would be NaN); padding columns get zeros.
    """
    grads = torch.zeros_like(clean), torch.zeros_like(adv)
    columns = options.valid_columns
    if clean.numel() == 0 or columns == 0:
        return grads
    dtype = working_dtype(clean)
    a, b = (x[:, :columns].to(dtype) for x in (clean, adv))
    maximum, mass, level, log_ratio, mean, divergence = (records[:, i : i + 1] for i in range(STATISTICS))
    u = centred_difference(a, b, maximum[:, 0], level[:, 0])
    h = u + log_ratio
    p, p_minus_q = (x / mass for x in _weights(a, b, h, maximum[:, 0], level[:, 0], log_ratio[:, 0]))
    weight = kl_weight.to(dtype)[:, None]
    to_adv = -p_minus_q
    to_clean = torch.zeros_like(p) if options.one_sided else p_minus_q
    if not options.detach_targets:
        to_clean = to_clean + _product(p, u, less=mean)
        if not options.one_sided:
            to_adv = to_adv - _product(p - p_minus_q, u, less=mean - divergence)
    ignored = torch.zeros_like(weight, dtype=torch.bool) if labels is None else (labels == IGNORED_LABEL)[:, None]
    skipped = ignored | (weight == 0)
    to_clean = torch.where(skipped, 0.0, weight * to_clean)
    to_adv = torch.where(skipped, 0.0, weight * to_adv)
    if labels is not None and mlm_weight is not None:
        local, owned = local_labels(labels, options)
        p = torch.exp(a - maximum) / mass
        to_mlm = p.scatter_add(1, local[:, None], -owned.to(dtype)[:, None])
        scale = mlm_weight.to(dtype)[:, None]
        to_clean = to_clean + torch.where(ignored | (scale == 0), 0.0, scale * to_mlm)
    grads[0][:, :columns] = to_clean
    grads[1][:, :columns] = to_adv
    return grads


def two_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(d, e) with d = a - b rounded and d + e = a - b exactly (Knuth's TwoSum; TAOCP vol. 2, 4.2.2, theorem B).

    A common shift of a against b makes d large and its rounding error as large as what is left after centring.
    """
    difference = a - b
    back = difference - a
    return difference, (a - (difference - back)) - (b + back)


def centred_difference(a: Tensor, b: Tensor, maximum: Tensor, level: Tensor) -> Tensor:
    """u = (a - b) - (m - n) [N, C]; 0 in columns that are -inf on both sides (masked out: P and Q are 0 there)."""
    u = _difference_of_differences(a, b, maximum[:, None], level[:, None])
    return torch.where((a == -torch.inf) & (b == -torch.inf), 0.0, u)


def _difference_of_differences(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(a - b) - (c - d), rounded once; an infinite difference has no rounding error."""
    (left, left_error), (right, right_error) = two_difference(a, b), two_difference(c, d)
    errors = (torch.where(torch.isfinite(error), error, 0.0) for error in (left_error, right_error))
    return (left - right) + (next(errors) - next(errors))


def _product(weight: Tensor, value: Tensor, *, less: Tensor | float = 0.0) -> Tensor:
    """weight * (value - less); a weight of 0 gives 0, however large the value is."""
    return weight * (torch.where(weight == 0, 0.0, value) - less)


def local_labels(labels: Tensor, options: RowOptions) -> tuple[Tensor, Tensor]:
    """(column of the label here, clamped; whether this shard holds it)."""
    local = labels - options.first_column
    owned = (local >= 0) & (local < options.valid_columns)
    return torch.where(owned, local, 0), owned


def _weights(
    a: Tensor, b: Tensor, h: Tensor, maximum: Tensor, level: Tensor, log_ratio: Tensor
) -> tuple[Tensor, Tensor]:
    """(Z p, Z (p - q)), each [N, C], with h = log(p / q): the larger of p and q first, the smaller as e^-|h| of it."""
    log_q = (b - level[:, None]) - log_ratio[:, None]
    larger = torch.exp(torch.maximum(a - maximum[:, None], log_q))
    p = torch.where(h < 0, larger * torch.exp(-h.abs()), larger)
    return p, larger * torch.expm1(-h.abs()) * -torch.sign(h)


def _one_sided_terms(p: Tensor, p_minus_q: Tensor, h: Tensor) -> Tensor:
    """p h + q - p = p (h + exp(-h) - 1) >= 0, whose sum is KL(P||Q); without overflow where p is far below q."""
    return torch.where(h.abs() < _SERIES_LIMIT, p * h * h * _series(h), _product(p, h) - p_minus_q)


def _series(h: Tensor) -> Tensor:
    """sum_{n >= 0} (-h)^n / (n + 2)!, by Horner."""
    total = torch.zeros_like(h)
    for factorial in (3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0):
        total = 1 / factorial - h * total
    return total
