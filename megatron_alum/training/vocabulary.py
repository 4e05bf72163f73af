"""Losses over the vocabulary from the rows at masked positions: with whole logits, or in pieces to bound memory.

Two classes with the same methods. Rows are what `heads` returns first: logits [N, Vp], or what the decoder multiplies,
[N, H], from which `ChunkedLogits` makes the logits of `chunk_rows` rows at a time. All losses are weighted sums over
rows; a row of weight 0 contributes nothing, not even a NaN. Vp is this rank's part of the padded vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from megatron_alum.models import SplitBert
from megatron_alum.ops import (
    kl_divergence,
    mlm_symmetric_kl_from_hidden,
    symmetric_kl,
    weighted_kl,
    weighted_mlm,
    weighted_mlm_symmetric_kl,
)


class Outputs(NamedTuple):
    """What the divergence compares."""

    rows: Tensor
    """[N, Vp] logits, or [N, H] to make them from"""
    nsp_logits: Tensor | None
    """[B, 2], or None for a network without that head"""


class VocabularyLosses(Protocol):
    """What the adversarial step asks of the vocabulary head."""

    def heads(self, hidden: Tensor, positions: Tensor) -> Outputs:
        """Both heads on hidden [S(/tp), B, H] and masked positions int64 [N]."""

    def divergence(self, clean: Tensor, adversarial: Tensor, *, symmetric: bool, weight: float) -> Tensor:
        """weight * sum of the rows' KL(clean || adversarial), or symmetric; targets flow, detach them before.

        Adversarial rows that need a gradient are given up: it may be written over them.
        """

    def mlm_and_divergence(
        self, clean: Tensor, adversarial: Tensor, labels: Tensor, *, mlm_weights: Tensor, kl_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum of mlm_weights [N] * MLM loss of the clean rows, sum of kl_weights [N] * symmetric KL), 0-dim each."""


class WholeLogits:
    """All logits at once."""

    def __init__(self, model: SplitBert, *, detach_targets: bool) -> None:
        """`detach_targets` as in AlumConfig."""
        self.model, self.detach_targets = model, detach_targets
        self.vocabulary: dict[str, Any] = {"valid_vocab_size": model.real_vocab_size, "group": model.groups.tp}

    def heads(self, hidden: Tensor, positions: Tensor) -> Outputs:
        """Rows are logits [N, Vp]."""
        return Outputs(*self.model.heads(hidden, positions))

    def mlm(self, logits: Tensor, labels: Tensor, *, weight: float, overwrite: bool = True) -> Tensor:
        """weight * sum of the rows' MLM losses; `overwrite` gives the logits up to their gradient."""
        weights = torch.full((logits.shape[0],), weight, device=logits.device)
        return weighted_mlm(logits, labels, row_weight=weights, overwrite_logits=overwrite, **self.vocabulary)

    def divergence(self, clean: Tensor, adversarial: Tensor, *, symmetric: bool, weight: float) -> Tensor:
        """As in the protocol."""
        weights = torch.full((clean.shape[0],), weight, device=clean.device)
        options: dict[str, Any] = {"detach_targets": False, "overwrite_logits": True, **self.vocabulary}
        return weighted_kl(clean, adversarial, row_weight=weights, symmetric=symmetric, **options)

    def mlm_and_divergence(
        self, clean: Tensor, adversarial: Tensor, labels: Tensor, *, mlm_weights: Tensor, kl_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As in the protocol; the gradients are written over both logits, which nobody may use again."""
        options: dict[str, Any] = {"detach_targets": self.detach_targets, "overwrite_logits": True, **self.vocabulary}
        return weighted_mlm_symmetric_kl(
            clean, adversarial, labels, mlm_row_weight=mlm_weights, kl_row_weight=kl_weights, **options
        )


class ChunkedLogits:
    """At most `chunk_rows` rows of logits, twice, exist at a time."""

    def __init__(self, model: SplitBert, *, detach_targets: bool, chunk_rows: int) -> None:
        """`detach_targets` as in AlumConfig, `chunk_rows` its head_chunk_rows."""
        self.model, self.detach_targets, self.chunk_rows = model, detach_targets, chunk_rows
        self.vocabulary: dict[str, Any] = {"valid_vocab_size": model.real_vocab_size, "group": model.groups.tp}

    def heads(self, hidden: Tensor, positions: Tensor) -> Outputs:
        """Rows are what the decoder multiplies, [N, H]."""
        return Outputs(*self.model.heads_before_decoder(hidden, positions))

    def divergence(self, clean: Tensor, adversarial: Tensor, *, symmetric: bool, weight: float) -> Tensor:
        """As in the protocol; the logits of a piece are computed again in backward."""
        row_divergence = symmetric_kl if symmetric else kl_divergence
        decoder = self.model.decoder_weight(), self.model.decoder_bias()

        def piece(clean_rows: Tensor, adversarial_rows: Tensor) -> Tensor:
            logits = (F.linear(rows, *decoder) for rows in (clean_rows, adversarial_rows))
            return row_divergence(*logits, detach_targets=False, **self.vocabulary).sum()

        pieces = zip(clean.split(self.chunk_rows), adversarial.split(self.chunk_rows), strict=True)
        sums = [checkpoint(piece, a, b, use_reentrant=False, preserve_rng_state=False) for a, b in pieces]
        return torch.stack(sums).sum() * weight

    def mlm_and_divergence(
        self, clean: Tensor, adversarial: Tensor, labels: Tensor, *, mlm_weights: Tensor, kl_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As in the protocol."""
        return mlm_symmetric_kl_from_hidden(
            clean,
            adversarial,
            self.model.decoder_weight(),
            self.model.decoder_bias(),
            labels,
            mlm_row_weight=mlm_weights,
            kl_row_weight=kl_weights,
            chunk_rows=self.chunk_rows,
            detach_targets=self.detach_targets,
            **self.vocabulary,
        )
