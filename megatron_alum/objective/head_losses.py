"""Losses of the vocabulary head on the rows at masked positions: from whole logits, or in pieces to bound memory.

Rows are the first value of `heads`: logits [N, Vp], or in pieces the input of the decoder, [N, H]. All losses are
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


class HeadRows(NamedTuple):
    """Outputs of the two heads."""

    rows: Tensor
    """[N, Vp] logits, or [N, H] from which to compute them"""
    nsp_logits: Tensor | None
    """[B, 2], or None for a network without that head"""

    def of_first(self, num_sequences: int) -> HeadRows:
        """All rows, and the sentence pairs of the first sequences alone."""
        return HeadRows(self.rows, None if self.nsp_logits is None else self.nsp_logits[:num_sequences])

    def detached(self) -> HeadRows:
        """The same numbers as constants."""
        return HeadRows(self.rows.detach(), None if self.nsp_logits is None else self.nsp_logits.detach())


class LossHead:
    """Losses from all logits at once, or from at most `chunk_rows` clean and as many adversarial rows at a time."""

    def __init__(self, model: SplitBert, alum: AlumConfig, *, chunk_rows: int = 0) -> None:
        """`alum` selects the divergences; `chunk_rows` = 0 takes all rows at once."""
        self.model, self.alum, self.chunk_rows = model, alum, chunk_rows
        self.vocab_shard: dict[str, Any] = {"valid_vocab_size": model.real_vocab_size, "group": model.groups.tp}

    def heads(self, hidden: Tensor | EncodedRows, inputs: ModelInputs, masked: slice = slice(None)) -> HeadRows:
        """Both heads on the encoder's output, for the `masked` ones of the masked positions."""
        heads = self.model.heads_before_decoder if self.chunk_rows else self.model.heads
        return HeadRows(*heads(hidden, inputs, masked=masked))

    def mlm(self, logits: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * MLM losses, from whole logits, over which their gradient may be written."""
        return row_losses(logits, None, labels, mlm_weight=weights, overwrite_logits=True, **self.vocab_shard).mlm

    def plain(self, rows: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * MLM losses of `rows` from `heads`, which may be overwritten. A loss scale belongs in the
        weights, as in `inner`.

        In pieces the rows serve as their own adversarial ones with weight 0: more products, but no second loop.
        """
        if not self.chunk_rows:
            return self.mlm(rows, labels, weights=weights)
        nothing = torch.zeros_like(weights)
        losses = self._losses(rows, rows.detach(), labels, mlm_weight=weights, kl_weight=nothing)
        return losses.mlm + losses.kl  # 0, but with a gradient: both sums must enter a loss alike

    def inner(self, clean: Tensor, adversarial: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * the losses that the ascent maximises; the rows `clean` are constants.

        The gradients may be formed with the losses: they are rounded with the weights alone, so a loss scale belongs
        there. The gradient may be written over the adversarial rows.
        """
        divergence = "symmetric" if self.alum.climbs_symmetric else "one_way"
        return self._losses(clean, adversarial, kl_weight=weights, divergence=divergence, detach_targets=False).kl

    def outer(self, clean: Tensor, adversarial: Tensor, labels: Tensor, **weights: Tensor) -> RowLosses:
        """MLM loss and symmetric divergence of the rows in one pass, weighted by `mlm_weight`, `kl_weight`,
        `log_weight`.

        The gradients may be written over both sets of rows.
        """
        return self._losses(clean, adversarial, labels, detach_targets=self.alum.detach_targets, **weights)

    def climbed(self, losses: RowLosses) -> Tensor:
        """The loss that the ascent maximises, for the rows of `outer` and their log weights; a constant, at no cost."""
        return losses.logged_kl if self.alum.climbs_symmetric else losses.logged_one_way

    def _losses(self, clean: Tensor, adversarial: Tensor, labels: Tensor | None = None, **options: Any) -> RowLosses:
        options |= self.vocab_shard
        if not self.chunk_rows:
            return row_losses(clean, adversarial, labels, overwrite_logits=True, **options)
        decoder = self.model.decoder_weight(), self.model.decoder_bias()
        return row_losses_from_hidden(clean, adversarial, *decoder, labels, chunk_rows=self.chunk_rows, **options)
