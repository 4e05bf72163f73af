"""The losses of one micro-batch on the Megatron model: MLM, next sentence, and the adversarial divergence.

Every term is a sum over the micro-batch's rows divided by a count over the whole global batch (`Counts`), so that
adding up micro-batches and data-parallel ranks gives the mean of the global batch, however it is split. The ascent
maximises a sum over samples, each of which moves only its own delta: with --alum-inner-reduction sample every sample
counts as if it stood alone, with batch by its share of the global batch.

Letters: T tokens of the micro-batch, H hidden, A sequences that take the adversarial branch (they come first), M
masked positions in them, tp tensor-parallel size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megatron_alum.alum import Ascent, ascend
from megatron_alum.alum.dropout import replayed
from megatron_alum.config.run import RunConfig
from megatron_alum.data.sampling.batch import IGNORED_LABEL
from megatron_alum.data.sampling.placement import Counts
from megatron_alum.models import EncodedRows, Level, ModelInputs, SplitBert
from megatron_alum.objective.head_losses import HeadRows, LossHead
from megatron_alum.objective.micro_batch import MicroBatch, Part
from megatron_alum.objective.rng import TrainingRng
from megatron_alum.ops import NoiseKey, RowLosses, kl_divergence, perturb_embeddings, symmetric_kl, weighted_sum


class MicroLoss(NamedTuple):
    """The loss of one micro-batch and its contributions to the log."""

    loss: Tensor
    """0-dim: this micro-batch's share of the global batch's loss"""
    logged: dict[str, Tensor]
    """device tensors without graph that add up over micro-batches and data-parallel ranks"""


class InnerWeights(NamedTuple):
    """Factors of the terms of the ascent's loss."""

    rows: Tensor
    """float32 [M], of the masked positions"""
    sequences: float
    """of the sentence-pair term of every sequence"""
    share: float
    """turns the sum over this micro-batch into its share of the logged mean"""


class Objective:
    """Forward passes and losses of micro-batches."""

    def __init__(self, model: SplitBert, config: RunConfig) -> None:
        """`model` is the bare network, not its data-parallel wrapper."""
        self.model, self.config, self.alum = model, config, config.alum
        self.parameters = list(model.parameters())
        self.whole_logits = LossHead(model, config.alum)
        self.head = LossHead(model, config.alum, chunk_rows=config.alum.head_chunk_rows)
        model_type = config.model.model_type
        self.has_pairs = config.model.has_nsp_head and config.data.objective_for(model_type) != "none"
        self.compares_pairs = self.has_pairs and config.alum.nsp

    # The standard objective.

    def standard(self, micro: MicroBatch, counts: Counts) -> MicroLoss:
        """MLM + next sentence."""
        return self.standard_losses(self.encoded(micro), micro, counts)

    def encoded(self, micro: MicroBatch) -> Tensor | EncodedRows:
        """Output of the encoder, or of this pipeline stage's layers."""
        inputs = micro.whole.inputs
        return self._encode(self.model.embed(inputs) if self.model.pre_process else None, inputs, level="word")

    def standard_losses(self, hidden: Tensor | EncodedRows, micro: MicroBatch, counts: Counts) -> MicroLoss:
        """MLM + next sentence from the encoder's output."""
        batch = micro.whole.batch
        outputs = self.whole_logits.heads(hidden, micro.whole.inputs)
        lm_loss = self._mlm(outputs.rows, batch.masked_labels, counts)
        nsp_loss = self._nsp_sum(outputs.nsp_logits, batch.nsp_labels) / counts.labelled
        return MicroLoss(lm_loss + nsp_loss, self._logged(lm_loss=lm_loss, nsp_loss=nsp_loss))

    # The adversarial objective.

    def adversarial(self, micro: MicroBatch, counts: Counts, *, iteration: int, loss_scale: Tensor) -> MicroLoss:
        """The objective of --alum-ascent; a micro-batch without adversarial sequences has the standard one.

        `iteration` keys the noise; `loss_scale` enters the gradients before they are rounded (float16).
        """
        if micro.adversarial is None:
            return self.standard(micro, counts)
        losses = self._virtual if self.alum.ascent == "virtual" else self._label
        return losses(micro, micro.adversarial, counts, iteration, loss_scale)

    def _virtual(self, micro: MicroBatch, part: Part, counts: Counts, iteration: int, loss_scale: Tensor) -> MicroLoss:
        """Algorithm 1: clean forward, ascent on delta, forward at x + delta, one pass over the rows of both logits."""
        num_rows, batch = part.batch.num_masked_tokens, micro.whole.batch
        x = self.model.embed(micro.whole.inputs, level=self.alum.level)
        masks = self._dropout_masks()
        hidden = self._encode(x, micro.whole.inputs)
        outputs = self.head.heads(hidden, micro.whole.inputs, slice(num_rows))
        clean = outputs.of_first(part.batch.num_sequences)
        targets = clean.detached()
        forward, weights = self._forward_on(part, masks), self._inner_weights(part, counts)
        x = self.model.leading(x, part.batch.tokens.numel())

        def inner_loss(x_adv: Tensor) -> Tensor:
            return self._inner_divergence(targets, forward(x_adv), weights, loss_scale.squeeze())

        ascent = self._ascend(x, inner_loss, part, iteration, loss_scale)
        adversarial = forward(self._sum(x.detach() if self.alum.detach_embeddings else x, ascent.delta))  # line 8
        scale = loss_scale.squeeze()
        losses = self._row_losses(clean, adversarial, ascent, part, counts, weights.rows, scale)
        lm_loss, alum_kl = losses.mlm / scale, losses.kl / scale
        if num_rows < batch.num_masked_tokens:  # the sequences that --alum-batch-fraction leaves out
            rest = self.head.heads(hidden, micro.whole.inputs, slice(num_rows, None)).rows
            labels = batch.masked_labels[num_rows:]
            lm_loss = lm_loss + self.head.plain(rest, labels, weights=_same(1 / counts.masked, labels) * scale) / scale
        nsp_loss = self._nsp_sum(outputs.nsp_logits, batch.nsp_labels) / counts.labelled
        alum_nsp_kl = self._nsp_divergence(clean, adversarial, ascent, counts)
        alpha, terms = self.alum.alpha, {"lm_loss": lm_loss, "nsp_loss": nsp_loss}
        logged = self._logged(**terms, alum_kl=alum_kl / alpha, alum_nsp_kl=alum_nsp_kl / alpha)
        if ascent.inner_start is not None:
            with torch.no_grad():
                inner_end = self.head.climbed(losses) + self._inner_nsp(targets, adversarial, weights)
            logged["kl_gain"] = (inner_end - ascent.inner_start) * weights.share
        return MicroLoss(lm_loss + nsp_loss + alum_kl + alum_nsp_kl, logged | _statistics(ascent))

    def _label(self, micro: MicroBatch, part: Part, counts: Counts, iteration: int, loss_scale: Tensor) -> MicroLoss:
        """Conventional adversarial training (the paper's Eq. 2): delta maximises the loss of the labels, which is then
        minimised at x + delta; no clean forward, no divergence.
        """
        x = self.model.embed(micro.whole.inputs, level=self.alum.level)
        masks = self._dropout_masks()
        weights, scale, forward = self._inner_weights(part, counts), loss_scale.squeeze(), self._forward_on(part, masks)

        def inner_loss(x_adv: Tensor) -> Tensor:
            outputs = forward(x_adv)
            loss = self.whole_logits.mlm(outputs.rows, part.batch.masked_labels, weights=weights.rows * scale) / scale
            if not self.compares_pairs:
                return loss
            return loss + self._nsp_sum(outputs.nsp_logits, part.batch.nsp_labels) * weights.sequences

        x_part = self.model.leading(x, part.batch.tokens.numel())
        ascent = self._ascend(x_part, inner_loss, part, iteration, loss_scale)
        delta = self.model.trailed(ascent.delta, part.batch.num_tokens, micro.whole.batch.tokens.numel())
        with replayed(TrainingRng(), masks):
            hidden = self._encode(self._sum(x, delta), micro.whole.inputs)
        loss, logged = self.standard_losses(hidden, micro, counts)
        return MicroLoss(loss, logged | _statistics(ascent))

    def _ascend(
        self,
        x: Tensor,
        inner_loss: Callable[[Tensor], Tensor],
        part: Part,
        iteration: int,
        loss_scale: Tensor,
    ) -> Ascent:
        """Lines 3 to 6 of Algorithm 1 on the part's x, float32 [T(/tp), 1, H]."""
        start = NoiseKey(
            seed=self.config.training.seed,
            iteration=iteration,
            sample_index=self.model.groups.local_tokens(part.sample_of_token),
            position=self.model.groups.local_tokens(part.batch.position),
            std=self.alum.noise_std,
        )
        is_real = part.is_real
        return ascend(
            x,
            inner_loss,
            start=start,
            config=self.alum,
            perturb=perturb_embeddings,
            segments=self.model.groups.local_tokens(part.batch.sequence)[:, None],
            num_segments=part.batch.num_sequences,
            mask=None if is_real is None else self.model.groups.local_tokens(is_real)[:, None],
            agree=self._agree,
            parameters=self.parameters,
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

    def _sum(self, x: Tensor, delta: Tensor) -> Tensor:
        """x + delta; the gradient flows to x."""
        settings: dict[str, Any] = {"step_size": 0.0, "epsilon": self.alum.epsilon, "projection": self.alum.projection}
        return perturb_embeddings(x, delta, None, **settings)[0]

    # Terms.

    def _mlm(self, logits: Tensor, labels: Tensor, counts: Counts) -> Tensor:
        """MLM loss of these rows, a share of the global batch; may overwrite the logits."""
        return self.whole_logits.mlm(logits, labels, weights=_same(1 / counts.masked, labels))

    def _row_losses(
        self,
        clean: HeadRows,
        adversarial: HeadRows,
        ascent: Ascent,
        part: Part,
        counts: Counts,
        log_weight: Tensor,
        loss_scale: Tensor,
    ) -> RowLosses:
        """MLM loss of the M clean rows and alpha times their symmetric KL: shares of the global batch, times
        loss_scale."""
        # The chunked head writes its gradients before the loss is scaled, so the row weights include the scale.
        is_finite, weight = ascent.finite[part.row_sequence], self.alum.alpha / counts.adversarial_masked
        return self.head.outer(
            clean.rows,
            adversarial.rows,
            part.batch.masked_labels,
            mlm_weight=torch.full_like(log_weight, 1 / counts.masked) * loss_scale,
            kl_weight=torch.where(is_finite, weight, 0.0).float() * loss_scale,
            log_weight=log_weight,
        )

    def _inner_weights(self, part: Part, counts: Counts) -> InnerWeights:
        """1 / the sample's own masked tokens, or their share of the global batch, by --alum-inner-reduction."""
        if self.alum.inner_reduction == "sample":
            return InnerWeights(part.row_share, 1.0, 1 / counts.adversarial_sequences)
        rows = torch.full_like(part.row_share, 1 / counts.adversarial_masked)
        return InnerWeights(rows, 1 / counts.adversarial_sequences, 1.0)

    def _inner_divergence(
        self, clean: HeadRows, adversarial: HeadRows, weights: InnerWeights, loss_scale: Tensor
    ) -> Tensor:
        """What a virtual ascent maximises, summed over the micro-batch."""
        total = self.head.inner(clean.rows, adversarial.rows, weights=weights.rows * loss_scale)
        return total / loss_scale + self._inner_nsp(clean, adversarial, weights)

    def _inner_nsp(self, clean: HeadRows, adversarial: HeadRows, weights: InnerWeights) -> Tensor | float:
        """The part of the next-sentence logits in that sum."""
        if not self.compares_pairs:
            return 0.0
        assert clean.nsp_logits is not None and adversarial.nsp_logits is not None
        divergence = symmetric_kl if self.alum.climbs_symmetric else kl_divergence
        rows = divergence(clean.nsp_logits, adversarial.nsp_logits, detach_targets=False)
        return rows.sum() * weights.sequences

    def _nsp_sum(self, logits: Tensor | None, labels: Tensor) -> Tensor:
        """Sum of the next-sentence losses of sequences with a label; 0 without that head."""
        if logits is None:
            return torch.zeros((), device=labels.device)
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")

    def _nsp_divergence(self, clean: HeadRows, adversarial: HeadRows, ascent: Ascent, counts: Counts) -> Tensor:
        """alpha times the symmetric KL of the next-sentence logits, as a share of the global batch."""
        if not self.compares_pairs:
            return torch.zeros((), device=ascent.delta.device)
        assert clean.nsp_logits is not None and adversarial.nsp_logits is not None
        rows = symmetric_kl(clean.nsp_logits, adversarial.nsp_logits, detach_targets=self.alum.detach_targets)
        weight = self.alum.alpha / counts.adversarial_sequences
        return weighted_sum(rows, torch.where(ascent.finite, weight, 0.0).to(rows.dtype))

    def _logged(self, **values: Tensor) -> dict[str, Tensor]:
        """The values without their graph, and without those of sentence pairs where the objective has none."""
        exists = {"nsp_loss": self.has_pairs, "alum_nsp_kl": self.compares_pairs}
        return {name: value.detach() for name, value in values.items() if exists.get(name, True)}

    # Passes through the network.

    def _encode(self, x: Tensor | None, inputs: ModelInputs, *, level: Level | None = None) -> Tensor | EncodedRows:
        """The part of the network above x; only the rows that the heads read, where the run allows it."""
        level = self.alum.level if level is None else level
        if x is not None and self.config.encodes_rows:
            return self.model.encode_rows(x, inputs, level=level)
        return self.model.encode(x, inputs, level=level)

    def _forward_on(self, part: Part, masks: Any | None) -> Callable[[Tensor], HeadRows]:
        """f of Algorithm 1 from the part's x, with the clean pass's dropout masks where there are any."""

        def forward(x: Tensor) -> HeadRows:
            with replayed(TrainingRng(), masks):
                return self.head.heads(self._encode(x, part.inputs), part.inputs)

        return forward

    def _dropout_masks(self) -> Any | None:
        """State from which the coming pass draws its dropout masks; None where every pass draws its own."""
        return TrainingRng().snapshot() if self.alum.dropout == "shared" else None


def _statistics(ascent: Ascent) -> dict[str, Tensor]:
    return {"perturbation_sums": ascent.sums, "nonfinite": ascent.nonfinite}


def _same(weight: float, labels: Tensor) -> Tensor:
    """float32 [N]: the same weight for each row."""
    return torch.full(labels.shape, weight, device=labels.device)
