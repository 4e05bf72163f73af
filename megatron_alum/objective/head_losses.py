"""Losses of the vocabulary head on the rows at masked positions: from whole logits, or in pieces to bound memory.

Rows are what `heads` returns first: logits [N, Vp], or in pieces what the decoder multiplies, [N, H]. All losses are
weighted sums over rows; a row of weight 0 contributes nothing, not even a NaN. Vp is this rank's part of the padded
vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_alum.config.alum import AlumConfig
from megatron_alum.models import EncodedRows, ModelInputs, SplitBert
from megatron_alum.ops import RowLosses, row_losses, row_losses_from_hidden


class Outputs(NamedTuple):
    """What the two heads give."""

    rows: Tensor
    """[N, Vp] logits, or [N, H] to make them from"""
    nsp_logits: Tensor | None
    """[B, 2], or None for a network without that head"""

    def of_first(self, num_sequences: int) -> Outputs:
        """All rows, and the sentence pairs of the first sequences alone."""
        return Outputs(self.rows, None if self.nsp_logits is None else self.nsp_logits[:num_sequences])

    def detached(self) -> Outputs:
        """The same numbers as constants."""
        return Outputs(self.rows.detach(), None if self.nsp_logits is None else self.nsp_logits.detach())


class VocabularyHead:
    """The head with all logits at once, or with at most `chunk_rows` rows of them, twice, at a time."""

    def __init__(self, model: SplitBert, alum: AlumConfig, *, chunk_rows: int = 0) -> None:
        """`alum` says which divergences; 0 rows are all of them."""
        self.model, self.alum, self.chunk_rows = model, alum, chunk_rows
        self.vocabulary: dict[str, Any] = {"valid_vocab_size": model.real_vocab_size, "group": model.groups.tp}

    def heads(self, hidden: Tensor | EncodedRows, inputs: ModelInputs, masked: slice = slice(None)) -> Outputs:
        """Both heads on the encoder's output, for the `masked` ones of the masked positions."""
        heads = self.model.heads_before_decoder if self.chunk_rows else self.model.heads
        return Outputs(*heads(hidden, inputs, masked=masked))

    def mlm(self, logits: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * MLM losses, of whole logits; gives them up to their gradient."""
        return row_losses(logits, None, labels, mlm_weight=weights, overwrite_logits=True, **self.vocabulary).mlm

    def plain(self, rows: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * MLM losses of `rows` from `heads`; gives logits up. A loss scale belongs into the
        weights, as in `inner`.

        In pieces the rows are their own adversarial ones, of weight 0: two products of four more, but no other loop.
        """
        if not self.chunk_rows:
            return self.mlm(rows, labels, weights=weights)
        nothing = torch.zeros_like(weights)
        losses = self._losses(rows, rows.detach(), labels, mlm_weight=weights, kl_weight=nothing)
        return losses.mlm + losses.kl  # 0, but with a gradient: both sums must enter a loss alike

    def inner(self, clean: Tensor, adversarial: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * what the ascent climbs, row by row; the rows `clean` are constants.

        The gradients may be formed with the losses: they are rounded with the weights alone, so a loss scale belongs
        there. The adversarial rows are given up: the gradient may be written over them.
        """
        divergence = "symmetric" if self.alum.climbs_symmetric else "one_way"
        return self._losses(clean, adversarial, kl_weight=weights, divergence=divergence, detach_targets=False).kl

    def outer(self, clean: Tensor, adversarial: Tensor, labels: Tensor, **weights: Tensor) -> RowLosses:
        """MLM loss and symmetric divergence of the rows in one pass, by `mlm_weight`, `kl_weight` and `log_weight`.

        Both rows are given up: the gradients may be written over them.
        """
        return self._losses(clean, adversarial, labels, detach_targets=self.alum.detach_targets, **weights)

    def climbed(self, losses: RowLosses) -> Tensor:
        """What the ascent climbs, of the rows of `outer`, by their log weights; a constant that cost no pass."""
        return losses.logged_kl if self.alum.climbs_symmetric else losses.logged_one_way

    def _losses(self, clean: Tensor, adversarial: Tensor, labels: Tensor | None = None, **options: Any) -> RowLosses:
        options |= self.vocabulary
        if not self.chunk_rows:
            return row_losses(clean, adversarial, labels, overwrite_logits=True, **options)
        decoder = self.model.decoder_weight(), self.model.decoder_bias()
        return row_losses_from_hidden(clean, adversarial, *decoder, labels, chunk_rows=self.chunk_rows, **options)
