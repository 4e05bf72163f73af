"""Former names of what `row_losses` and `row_losses_from_hidden` do; to go as soon as nobody calls them."""

from typing import Any

from torch import Tensor

from megatron_alum.ops.rows import row_losses
from megatron_alum.ops.rows_from_hidden import row_losses_from_hidden


def weighted_kl(clean: Tensor, adv: Tensor, *, row_weight: Tensor, symmetric: bool = True, **options: Any) -> Tensor:
    """The weighted sum of the divergences."""
    divergence = "symmetric" if symmetric else "one_way"
    return row_losses(clean, adv, kl_weight=row_weight, divergence=divergence, **options).kl


def weighted_mlm_symmetric_kl(
    clean: Tensor, adv: Tensor, labels: Tensor, *, mlm_row_weight: Tensor, kl_row_weight: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Both weighted sums."""
    return row_losses(clean, adv, labels, mlm_weight=mlm_row_weight, kl_weight=kl_row_weight, **options)[:2]


def weighted_mlm(logits: Tensor, labels: Tensor, *, row_weight: Tensor, **options: Any) -> Tensor:
    """The weighted sum of the MLM losses."""
    return row_losses(logits, None, labels, mlm_weight=row_weight, **options).mlm


def weighted_kl_from_hidden(
    clean: Tensor,
    adv: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    row_weight: Tensor,
    symmetric: bool = True,
    **options: Any,
) -> Tensor:
    """The weighted sum of the divergences from hidden states."""
    divergence = "symmetric" if symmetric else "one_way"
    return row_losses_from_hidden(clean, adv, weight, bias, kl_weight=row_weight, divergence=divergence, **options).kl
