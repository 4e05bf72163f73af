"""Other sources of the ascent direction, by --alum-ascent: the labels, or the clean backward that is paid for anyway.

    virtual   the divergence, as in the paper's Algorithm 1                                      8 F   objective.py
    label     conventional adversarial training (the paper's Eq. 2): delta climbs the label loss and the loss is that of
              the labels at x + delta                                                            5 F   LabelObjective
    free      the clean backward comes first and its gradient at x is the direction; the adversarial branch alone then
              receives KL(clean || adversarial), the clean side a constant                       6 F   FreeObjective

`free` is a different, one-sided objective and beyond the paper: clean logits get no divergence gradient. The costs are
those of one ascent step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_alum.alum import AlumRegularizer
from megatron_alum.alum.dropout import replayed
from megatron_alum.config.run import RunConfig
from megatron_alum.models import SplitBert
from megatron_alum.ops import kl_divergence, perturb_embeddings
from megatron_alum.training.objective import (
    Counts,
    MicroBatch,
    MicroLoss,
    Objective,
    adversarial_part,
    others_of,
)
from megatron_alum.training.rng import TrainingRng
from megatron_alum.training.vocabulary import Outputs


class LabelObjective(Objective):
    """min over weights, max over delta of the label loss at x + delta; no clean forward, no divergence."""

    def adversarial(self, micro: MicroBatch, counts: Counts, *, iteration: int, loss_scale: Tensor) -> MicroLoss:
        """The label losses at x + delta for the A sequences, at x for the others."""
        regularizer = self._label_regularizer(counts, loss_scale)
        part = adversarial_part(micro)
        x = self._embed(micro)
        snapshot = regularizer.dropout_snapshot()
        ascent = regularizer.ascend(
            x[:, : part.batch.num_sequences],
            (part.batch.masked_labels, part.batch.nsp_labels),
            self._forward_on(part),
            mask=self._may_be_perturbed(part),
            noise_key=self._noise_key(part, iteration),
            parameters=self.parameters,
            dropout_snapshot=snapshot,
        )
        with replayed(regularizer.dropout_state, snapshot):
            outputs = self._forward_on(part)(self._perturbed(x[:, : part.batch.num_sequences], ascent))
        lm_loss = self.whole.mlm(outputs.rows, part.batch.masked_labels, weight=1 / counts.masked)
        nsp_loss = self._nsp_sum(outputs.nsp_logits, part.batch.nsp_labels) / counts.labelled
        rest = others_of(micro)
        if rest is not None:
            clean = self.whole.heads(self._encode(x[:, part.batch.num_sequences :], rest), rest.batch.masked_positions)
            lm_loss = lm_loss + self.whole.mlm(clean.rows, rest.batch.masked_labels, weight=1 / counts.masked)
            nsp_loss = nsp_loss + self._nsp_sum(clean.nsp_logits, rest.batch.nsp_labels) / counts.labelled
        logged = self._logged(lm_loss=lm_loss, nsp_loss=nsp_loss)
        for name in ("effective_perturbation", "ascent_ratio", "nonfinite"):
            logged[name] = ascent.stats[name]
        return MicroLoss(lm_loss + nsp_loss, logged)

    def _label_regularizer(self, counts: Counts, loss_scale: Tensor) -> AlumRegularizer:
        """The ascent of Algorithm 1 with the label loss in the divergence's place."""

        def label_loss(clean: Any, adversarial: Any, *, symmetric: bool, detach_targets: bool) -> Tensor:
            labels, outputs = clean, adversarial  # the regulariser's names for what it hands over
            if isinstance(labels, Tensor):  # --alum-nsp false: the first of each
                return self.whole.mlm(outputs, labels, weight=1 / counts.masked)
            nsp = self._nsp_sum(outputs.nsp_logits, labels[1]) / counts.labelled
            return self.whole.mlm(outputs.rows, labels[0], weight=1 / counts.masked) + nsp

        return self._new_regularizer(label_loss, loss_scale)


class FreeObjective(Objective):
    """The ascent direction for free, from the clean pass's own backward."""

    def adversarial(self, micro: MicroBatch, counts: Counts, *, iteration: int, loss_scale: Tensor) -> MicroLoss:
        """Runs the clean backward itself and returns the rest of the loss.

        The returned loss holds a term whose value means nothing: x times the clean gradient at x, which carries that
        gradient on to the embedding in the same backward as the adversarial branch's.
        """
        rng = TrainingRng()
        part = adversarial_part(micro)
        x = self._embed(micro)
        snapshot = rng.snapshot() if self.alum.dropout == "shared" else None
        leaf = x.detach().requires_grad_(True)
        outputs = self.whole.heads(self._encode(leaf, micro), micro.batch.masked_positions)
        weight = 1 / counts.masked
        lm_loss = self.whole.mlm(outputs.rows, micro.batch.masked_labels, weight=weight, overwrite=False)
        nsp_loss = self._nsp_sum(outputs.nsp_logits, micro.batch.nsp_labels) / counts.labelled
        ((lm_loss + nsp_loss) * loss_scale.squeeze()).backward()
        assert leaf.grad is not None
        gradient = leaf.grad / loss_scale.squeeze()
        x_part = x[:, : part.batch.num_sequences]
        x_adv, _, stats = perturb_embeddings(
            x_part.detach() if self.alum.detach_embeddings else x_part,
            self._noise_key(part, iteration),
            gradient[:, : part.batch.num_sequences].contiguous(),
            step_size=self.alum.step_size,
            epsilon=self.alum.epsilon,
            projection=self.alum.projection,
            mask=self._may_be_perturbed(part),
        )
        with replayed(rng, snapshot):
            adversarial = self.whole.heads(self._encode(x_adv, part), part.batch.masked_positions)
        alum_kl, alum_nsp_kl = self._one_sided(outputs, adversarial, part, counts)
        carried = (x * gradient).sum()
        logged = self._logged(lm_loss=lm_loss, nsp_loss=nsp_loss, alum_kl=alum_kl, alum_nsp_kl=alum_nsp_kl)
        logged |= {"effective_perturbation": stats.effective_perturbation, "ascent_ratio": stats.ascent_ratio}
        logged["nonfinite"] = stats.nonfinite_tokens
        return MicroLoss(self.alum.alpha * (alum_kl + alum_nsp_kl) + carried, logged)

    def _one_sided(
        self, clean: Outputs, adversarial: Outputs, part: MicroBatch, counts: Counts
    ) -> tuple[Tensor, Tensor]:
        """KL(clean || adversarial) of the A sequences' rows and next-sentence logits, shares of the global batch."""
        clean_rows = clean.rows.detach()[: part.counts.adversarial_masked]
        rows = kl_divergence(clean_rows, adversarial.rows, **self.whole.vocabulary)
        alum_kl = rows.sum() / counts.adversarial_masked
        if not self.compares_pairs:
            return alum_kl, torch.zeros_like(alum_kl)
        assert clean.nsp_logits is not None and adversarial.nsp_logits is not None
        nsp = kl_divergence(clean.nsp_logits.detach()[: part.batch.num_sequences], adversarial.nsp_logits)
        return alum_kl, nsp.sum() / counts.adversarial_sequences


def build_objective(model: SplitBert, config: RunConfig) -> Objective:
    """The objective of --alum-ascent."""
    kind = {"virtual": Objective, "label": LabelObjective, "free": FreeObjective}[config.compute.alum_ascent]
    return kind(model, config)
