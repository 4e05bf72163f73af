"""Losses of the vocabulary head on the rows at masked positions: from whole logits, or in pieces to bound memory.

Two classes with the same methods. Rows are what `heads` returns first: logits [N, Vp], or what the decoder multiplies,
[N, H], from which `ChunkedLogits` makes the logits of some rows at a time. All losses are weighted sums over rows; a
row of weight 0 contributes nothing, not even a NaN. Vp is this rank's part of the padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from megatron_alum.config.alum import AlumConfig
from megatron_alum.models import EncodedRows, ModelInputs, SplitBert
from megatron_alum.ops import RowLosses as OpLosses
from megatron_alum.ops import kl_divergence, row_losses, row_losses_from_hidden, symmetric_kl


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


class RowLosses(NamedTuple):
    """Sums over the rows of clean and adversarial pass, 0-dim each."""

    mlm: Tensor
    """of weight * MLM loss of the clean rows"""
    kl: Tensor
    """of weight * symmetric KL"""
    inner: Tensor
    """of weight * the ascent's divergence; a constant, for the log"""


class WholeLogits:
    """All logits at once."""

    def __init__(self, model: SplitBert, alum: AlumConfig) -> None:
        """`alum` says which divergences."""
        self.model, self.alum = model, alum
        self.vocabulary: dict[str, Any] = {"valid_vocab_size": model.real_vocab_size, "group": model.groups.tp}

    def heads(self, hidden: Tensor | EncodedRows, inputs: ModelInputs, masked: slice = slice(None)) -> Outputs:
        """Both heads on the encoder's output; rows are logits [N, Vp], of the `masked` ones of the masked positions."""
        return Outputs(*self.model.heads(hidden, inputs, masked=masked))

    def mlm(self, logits: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * MLM losses; gives the logits up to their gradient."""
        return row_losses(logits, None, labels, mlm_weight=weights, overwrite_logits=True, **self.vocabulary).mlm

    def divergence(self, clean: Tensor, adversarial: Tensor, *, weights: Tensor) -> Tensor:
        """Sum of weights [N] * what the ascent climbs, row by row; the targets `clean` are constants.

        The gradients may be formed with the losses: they are rounded with the weights alone, so a loss scale belongs
        there. The adversarial rows are given up: the gradient may be written over them.
        """
        options: dict[str, Any] = {"detach_targets": False, "overwrite_logits": True, **self.vocabulary}
        return row_losses(clean, adversarial, kl_weight=weights, divergence=climbed(self.alum), **options).kl

    def mlm_and_divergence(
        self,
        clean: Tensor,
        adversarial: Tensor,
        labels: Tensor,
        *,
        mlm_weights: Tensor,
        kl_weights: Tensor,
        inner_weights: Tensor,
    ) -> RowLosses:
        """All losses of the rows, weights [N] each; the gradients are written over both logits."""
        weights: dict[str, Any] = {"mlm_weight": mlm_weights, "kl_weight": kl_weights, "log_weight": inner_weights}
        detach = self.alum.detach_targets
        options: dict[str, Any] = {"detach_targets": detach, "overwrite_logits": True, **self.vocabulary}
        return with_inner(row_losses(clean, adversarial, labels, **weights, **options), self.alum)


class ChunkedLogits:
    """At most --alum-head-chunk-rows rows of logits, twice, exist at a time; methods as those of WholeLogits."""

    def __init__(self, model: SplitBert, alum: AlumConfig) -> None:
        """`alum` says which divergences, and how many rows at a time."""
        self.model, self.alum = model, alum
        self.vocabulary: dict[str, Any] = {"valid_vocab_size": model.real_vocab_size, "group": model.groups.tp}

    def heads(self, hidden: Tensor | EncodedRows, inputs: ModelInputs, masked: slice = slice(None)) -> Outputs:
        """As WholeLogits.heads; rows are what the decoder multiplies, [N, H]."""
        return Outputs(*self.model.heads_before_decoder(hidden, inputs, masked=masked))

    def divergence(self, clean: Tensor, adversarial: Tensor, *, weights: Tensor) -> Tensor:
        """As WholeLogits.divergence."""
        losses = row_losses_from_hidden(
            clean,
            adversarial,
            *self._decoder(),
            kl_weight=weights,
            chunk_rows=self.alum.head_chunk_rows,
            divergence=climbed(self.alum),
            detach_targets=False,
            **self.vocabulary,
        )
        return losses.kl

    def mlm_and_divergence(
        self,
        clean: Tensor,
        adversarial: Tensor,
        labels: Tensor,
        *,
        mlm_weights: Tensor,
        kl_weights: Tensor,
        inner_weights: Tensor,
    ) -> RowLosses:
        """As WholeLogits.mlm_and_divergence."""
        losses = row_losses_from_hidden(
            clean,
            adversarial,
            *self._decoder(),
            labels,
            mlm_weight=mlm_weights,
            kl_weight=kl_weights,
            log_weight=inner_weights,
            chunk_rows=self.alum.head_chunk_rows,
            detach_targets=self.alum.detach_targets,
            **self.vocabulary,
        )
        return with_inner(losses, self.alum)

    def _decoder(self) -> tuple[Tensor, Tensor]:
        return self.model.decoder_weight(), self.model.decoder_bias()


def climbed(alum: AlumConfig) -> str:
    """What the ascent climbs, by the name that the ops have for it."""
    return "symmetric" if alum.climbs_symmetric else "one_way"


def with_inner(losses: OpLosses, alum: AlumConfig) -> RowLosses:
    """The losses, with the ascent's divergence that came with their pass."""
    return RowLosses(losses.mlm, losses.kl, losses.logged_kl if alum.climbs_symmetric else losses.logged_one_way)


def inner_divergence(alum: AlumConfig) -> Callable[..., Tensor]:
    """What the ascent climbs, of two sets of logits, row by row."""
    return symmetric_kl if alum.climbs_symmetric else kl_divergence
