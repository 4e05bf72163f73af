"""The losses of one micro-batch on the Megatron model: MLM, next sentence, and the adversarial divergence.

Every term is a sum over the micro-batch's rows divided by a count over the whole global batch, so that adding up
micro-batches and data-parallel ranks gives the mean of the global batch, however it is cut. The same counts divide the
inner divergence, so that the ascent, too, does not depend on the layout.

Letters: B micro-batch, A sequences of it that take the adversarial branch, S sequence, H hidden, N masked positions of
the micro-batch, M the first of them, which lie in the A sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.alum import AlumRegularizer, Ascent, Kernels, adversarial_count
from megatron_alum.alum.dropout import replayed
from megatron_alum.alum.kernels import Divergence
from megatron_alum.config.alum import AlumConfig
from megatron_alum.config.run import RunConfig
from megatron_alum.data.batch import IGNORED_LABEL, PretrainingBatch
from megatron_alum.models import EncodedRows, SplitBert
from megatron_alum.ops import NoiseKey, perturb_embeddings, symmetric_kl, weighted_sum
from megatron_alum.training.rng import TrainingRng
from megatron_alum.training.vocabulary import (
    ChunkedLogits,
    Outputs,
    RowLosses,
    VocabularyLosses,
    WholeLogits,
    inner_divergence,
)


@dataclass(frozen=True)
class Counts:
    """Rows of the global batch that the losses are means over; at least 1 each, so that an empty batch gives 0."""

    masked: int
    """masked tokens"""
    labelled: int
    """sequences with a sentence-pair label"""
    adversarial_masked: int
    """masked tokens of the sequences that take the adversarial branch"""
    adversarial_sequences: int
    """those sequences"""


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch on the device, with what the host must know of it."""

    batch: PretrainingBatch
    """tensors on the device"""
    padding_mask: Tensor | None
    """bool [B, S], or None where nothing is padding: attention is faster without a mask"""
    counts: Counts
    """of this micro-batch alone; adversarial_sequences is A, adversarial_masked M"""

    @classmethod
    def load(cls, batch: PretrainingBatch, config: AlumConfig, device: torch.device) -> MicroBatch:
        """Count on the host, then move to `device`."""
        sequences = adversarial_count(batch.num_sequences, config.batch_fraction)
        counts = Counts(
            masked=batch.num_masked_tokens,
            labelled=int((batch.nsp_labels != IGNORED_LABEL).sum()),
            adversarial_masked=int((batch.masked_positions < sequences * batch.tokens.shape[1]).sum()),
            adversarial_sequences=sequences,
        )
        moved = batch.to(device, non_blocking=True)
        return cls(moved, None if bool(batch.padding_mask.all()) else moved.padding_mask, counts)


COUNTED = tuple(field.name for field in fields(Counts))


def local_counts(micro_batches: Sequence[MicroBatch]) -> list[int]:
    """This rank's rows of an iteration, in the order of the fields of Counts."""
    return [sum(getattr(micro.counts, name) for micro in micro_batches) for name in COUNTED]


def global_counts(summed: Sequence[int]) -> Counts:
    """The denominators, from `local_counts` summed over the data-parallel ranks."""
    return Counts(*(max(1, count) for count in summed))


class MicroLoss(NamedTuple):
    """The loss of one micro-batch and its contributions to the log."""

    loss: Tensor
    """0-dim: this micro-batch's share of the global batch's loss"""
    logged: dict[str, Tensor]
    """0-dim device tensors without graph; losses are shares like `loss`, statistics are values"""


class Objective:
    """Forward passes and losses of micro-batches."""

    def __init__(self, model: SplitBert, config: RunConfig) -> None:
        """`model` is the bare network, not its data-parallel wrapper."""
        self.model, self.config, self.alum = model, config, config.alum
        self.parameters = list(model.parameters())
        self.whole = WholeLogits(model, config.alum)
        self.vocabulary: VocabularyLosses = self.whole
        if config.alum.head_chunk_rows:
            self.vocabulary = ChunkedLogits(model, config.alum)
        model_type = config.model.model_type
        self.has_pairs = config.model.has_nsp_head and config.data.objective_for(model_type) != "none"
        self.compares_pairs = self.has_pairs and config.alum.nsp

    def standard(self, micro: MicroBatch, counts: Counts) -> MicroLoss:
        """MLM + next sentence."""
        return self.standard_losses(self.encoded(micro), micro, counts)

    def encoded(self, micro: MicroBatch) -> Tensor | EncodedRows:
        """Output of the encoder, or of this pipeline stage's part of it: [S(/tp), B, H], or the rows that count."""
        return self._encode(self._embed(micro) if self.model.pre_process else None, micro)

    def standard_losses(self, hidden: Tensor | EncodedRows, micro: MicroBatch, counts: Counts) -> MicroLoss:
        """MLM + next sentence from the encoder's output."""
        outputs = self.whole.heads(hidden, micro.batch.masked_positions)
        lm_loss = self.whole.mlm(outputs.rows, micro.batch.masked_labels, weight=1 / counts.masked)
        nsp_loss = self._nsp_sum(outputs.nsp_logits, micro.batch.nsp_labels) / counts.labelled
        return MicroLoss(lm_loss + nsp_loss, self._logged(lm_loss=lm_loss, nsp_loss=nsp_loss))

    def adversarial(self, micro: MicroBatch, counts: Counts, *, iteration: int, loss_scale: Tensor) -> MicroLoss:
        """Algorithm 1: clean forward, ascent on delta, forward at x + delta, one pass over the rows of both logits.

        `iteration` keys the noise; `loss_scale` enters the gradients before they are rounded (float16).
        """
        regularizer = self._regularizer(counts, loss_scale)
        part = adversarial_part(micro)
        x = self._embed(micro)
        snapshot = regularizer.dropout_snapshot()
        hidden = self._encode(x, micro)
        outputs = self.vocabulary.heads(hidden, part.batch.masked_positions)
        clean = self._of_part(outputs, part)
        x = x[:, : part.batch.num_sequences]
        ascent = regularizer.ascend(
            x,
            clean,
            self._forward_on(part),
            mask=self._may_be_perturbed(part),
            noise_key=self._noise_key(part, iteration),
            parameters=self.parameters,
            dropout_snapshot=snapshot,
        )
        with replayed(regularizer.dropout_state, snapshot):
            adversarial = self._forward_on(part)(self._perturbed(x, ascent))
        rows = self._row_losses(clean, adversarial, ascent, part, counts, loss_scale.squeeze())
        lm_loss, alum_kl = rows.mlm + self._mlm_of_the_rest(hidden, micro, counts), rows.kl
        nsp_loss = self._nsp_sum(outputs.nsp_logits, micro.batch.nsp_labels) / counts.labelled
        alum_nsp_kl = self._nsp_divergence(clean, adversarial, ascent, counts)
        loss = lm_loss + nsp_loss + alum_kl + alum_nsp_kl
        alpha = self.alum.alpha
        logged = self._logged(
            lm_loss=lm_loss, nsp_loss=nsp_loss, alum_kl=alum_kl / alpha, alum_nsp_kl=alum_nsp_kl / alpha
        )
        with torch.no_grad():
            kl_end = rows.inner + self._inner_nsp_divergence(counts, clean, adversarial)
        return MicroLoss(loss, logged | _statistics(ascent, kl_end))

    def _row_losses(
        self,
        clean: Outputs,
        adversarial: Outputs,
        ascent: Ascent,
        part: MicroBatch,
        counts: Counts,
        loss_scale: Tensor,
    ) -> RowLosses:
        """MLM loss of the M clean rows, alpha x their symmetric KL, inner divergence: shares of the global batch."""
        sample = part.batch.masked_positions // part.batch.tokens.shape[1]
        weight = self.alum.alpha / counts.adversarial_masked
        # The chunked head writes its gradients before the loss is scaled, so the row weights bring the scale along.
        kl_weights = torch.where(ascent.finite[sample], weight, 0.0).float() * loss_scale
        mlm_weights = torch.full_like(kl_weights, 1 / counts.masked) * loss_scale
        sums = self.vocabulary.mlm_and_divergence(
            clean.rows, adversarial.rows, part.batch.masked_labels, mlm_weights=mlm_weights, kl_weights=kl_weights
        )
        return RowLosses(sums.mlm / loss_scale, sums.kl / loss_scale, sums.inner / counts.adversarial_masked)

    def _mlm_of_the_rest(self, hidden: Tensor | EncodedRows, micro: MicroBatch, counts: Counts) -> Tensor | float:
        """MLM loss of the rows that took no adversarial branch (--alum-batch-fraction)."""
        begin = micro.counts.adversarial_masked
        if begin == micro.counts.masked:
            return 0.0
        rest = hidden.beyond(begin) if isinstance(hidden, EncodedRows) else hidden
        logits = self.whole.heads(rest, micro.batch.masked_positions[begin:]).rows
        return self.whole.mlm(logits, micro.batch.masked_labels[begin:], weight=1 / counts.masked)

    def _nsp_sum(self, logits: Tensor | None, labels: Tensor) -> Tensor:
        """Sum of the next-sentence losses of sequences with a label; 0 without that head."""
        if logits is None:
            return torch.zeros((), device=labels.device)
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")

    def _nsp_divergence(self, clean: Outputs, adversarial: Outputs, ascent: Ascent, counts: Counts) -> Tensor:
        """alpha x the symmetric KL of the next-sentence logits, as a share of the global batch."""
        if not self.compares_pairs:
            return torch.zeros((), device=ascent.delta.device)
        assert clean.nsp_logits is not None and adversarial.nsp_logits is not None
        rows = symmetric_kl(clean.nsp_logits, adversarial.nsp_logits, detach_targets=self.alum.detach_targets)
        weight = self.alum.alpha / counts.adversarial_sequences
        return weighted_sum(rows, torch.where(ascent.finite, weight, 0.0).to(rows.dtype))

    def _of_part(self, outputs: Outputs, part: MicroBatch) -> Outputs:
        """The outputs of the A sequences from those of all B (the rows are theirs already)."""
        if outputs.nsp_logits is None:
            return outputs
        return Outputs(outputs.rows, outputs.nsp_logits[: part.batch.num_sequences])

    def _inner_divergence(self, counts: Counts, clean: Outputs, adversarial: Outputs, loss_scale: Tensor) -> Tensor:
        """What the ascent climbs, of this micro-batch, as its share of the global batch's."""
        weights = (loss_scale / counts.adversarial_masked).expand(clean.rows.shape[0])
        total = self.vocabulary.divergence(clean.rows, adversarial.rows, weights=weights)
        return total / loss_scale + self._inner_nsp_divergence(counts, clean, adversarial)

    def _inner_nsp_divergence(self, counts: Counts, clean: Outputs, adversarial: Outputs) -> Tensor | float:
        """The part of the next-sentence logits in that share."""
        if not self.compares_pairs:
            return 0.0
        assert clean.nsp_logits is not None and adversarial.nsp_logits is not None
        rows = inner_divergence(self.alum)(clean.nsp_logits, adversarial.nsp_logits, detach_targets=False)
        return rows.sum() / counts.adversarial_sequences

    def _logged(self, **values: Tensor) -> dict[str, Tensor]:
        """The values without their graph, and without those of sentence pairs where the objective has none."""
        exists = {"nsp_loss": self.has_pairs, "alum_nsp_kl": self.compares_pairs}
        return {name: value.detach() for name, value in values.items() if exists.get(name, True)}

    def _regularizer(self, counts: Counts, loss_scale: Tensor) -> AlumRegularizer:
        def divergence(clean: Any, adversarial: Any, *, symmetric: bool, detach_targets: bool) -> Tensor:
            # Asked for by the ascent alone. With --alum-nsp false it hands over the first output alone.
            a, b = (value if isinstance(value, Outputs) else Outputs(value, None) for value in (clean, adversarial))
            return self._inner_divergence(counts, a, b, loss_scale.squeeze())

        return self._new_regularizer(divergence, loss_scale)

    def _new_regularizer(self, divergence: Divergence, loss_scale: Tensor) -> AlumRegularizer:
        return AlumRegularizer(
            self.alum,
            Kernels(perturb=perturb_embeddings, divergence=divergence, agree=self._agree),
            dropout_state=TrainingRng(),
            plain_backward=self.config.compute.recompute_granularity != "none",
            gradient_scale=loss_scale,
        )

    def _agree(self, finite: Tensor) -> Tensor:
        """Finite on every tensor-parallel rank: under sequence parallelism each sees a part of the tokens."""
        if self.model.groups.tp_size == 1:
            return finite
        flags = finite.to(torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MIN, group=self.model.groups.tp)
        return flags.bool()

    def _embed(self, micro: MicroBatch) -> Tensor:
        """x, float32 [S(/tp), B, H]."""
        return self.model.embed(micro.batch.tokens, token_types=micro.batch.token_types, level=self.alum.perturb)

    def _encode(self, embeddings: Tensor | None, micro: MicroBatch) -> Tensor | EncodedRows:
        inputs: dict[str, Any] = {"token_types": micro.batch.token_types, "padding_mask": micro.padding_mask}
        if embeddings is not None and self.config.encodes_rows:
            return self.model.encode_rows(embeddings, micro.batch.masked_positions, level=self.alum.perturb, **inputs)
        return self.model.encode(embeddings, level=self.alum.perturb, **inputs)

    def _forward_on(self, part: MicroBatch) -> Callable[[Tensor], Outputs]:
        """forward_from_embeddings of Algorithm 1 for the A sequences."""

        def forward(embeddings: Tensor) -> Outputs:
            hidden = self._encode(embeddings, part)
            return self.vocabulary.heads(hidden, part.batch.masked_positions)

        return forward

    def _perturbed(self, x: Tensor, ascent: Ascent) -> Tensor:
        """x + delta; the gradient of x flows unless --alum-detach-embeddings."""
        x = x.detach() if self.alum.detach_embeddings else x
        settings: dict[str, Any] = {"step_size": 0.0, "epsilon": self.alum.epsilon, "projection": self.alum.projection}
        x_adv, _, _ = perturb_embeddings(x, ascent.delta, None, **settings)
        return x_adv

    def _local_positions(self, length: int, device: torch.device) -> Tensor:
        """Token positions whose embeddings this rank holds, int64 [S(/tp)]."""
        groups = self.model.groups
        positions = torch.arange(length, device=device)
        return positions.chunk(groups.tp_size)[groups.tp_rank] if groups.sequence_parallel else positions

    def _may_be_perturbed(self, part: MicroBatch) -> Tensor | None:
        """bool [S(/tp), A]: False at padding; None where there is none."""
        if part.padding_mask is None:
            return None
        positions = self._local_positions(part.padding_mask.shape[1], part.padding_mask.device)
        return part.padding_mask[:, positions].transpose(0, 1).contiguous()

    def _noise_key(self, part: MicroBatch, iteration: int) -> NoiseKey:
        return NoiseKey(
            seed=self.config.training.seed,
            iteration=iteration,
            sample_index=part.batch.sample_index,
            position=self._local_positions(part.batch.tokens.shape[1], part.batch.tokens.device),
            std=self.alum.noise_std,
        )


def adversarial_part(micro: MicroBatch) -> MicroBatch:
    """The first A sequences of a micro-batch with their M masked positions."""
    sequences, rows = micro.counts.adversarial_sequences, micro.counts.adversarial_masked
    if sequences == micro.batch.num_sequences:
        return micro
    batch = micro.batch
    part = PretrainingBatch(
        tokens=batch.tokens[:sequences],
        token_types=batch.token_types[:sequences],
        padding_mask=batch.padding_mask[:sequences],
        masked_positions=batch.masked_positions[:rows],
        masked_labels=batch.masked_labels[:rows],
        nsp_labels=batch.nsp_labels[:sequences],
        sample_index=batch.sample_index[:sequences],
    )
    return MicroBatch(part, None if micro.padding_mask is None else micro.padding_mask[:sequences], micro.counts)


def others_of(micro: MicroBatch) -> MicroBatch | None:
    """The sequences beyond the first A with their masked positions; None when there are none."""
    sequences, rows = micro.counts.adversarial_sequences, micro.counts.adversarial_masked
    if sequences == micro.batch.num_sequences:
        return None
    batch = micro.batch
    others = PretrainingBatch(
        tokens=batch.tokens[sequences:],
        token_types=batch.token_types[sequences:],
        padding_mask=batch.padding_mask[sequences:],
        masked_positions=batch.masked_positions[rows:] - sequences * batch.tokens.shape[1],
        masked_labels=batch.masked_labels[rows:],
        nsp_labels=batch.nsp_labels[sequences:],
        sample_index=batch.sample_index[sequences:],
    )
    return MicroBatch(others, None if micro.padding_mask is None else micro.padding_mask[sequences:], micro.counts)


def _statistics(ascent: Ascent, kl_end: Tensor) -> dict[str, Tensor]:
    names = ("effective_perturbation", "ascent_ratio", "nonfinite")
    return {"kl_gain": kl_end - ascent.stats["inner_kl_start"], **{name: ascent.stats[name] for name in names}}
