"""`AlumRegularizer`: Algorithm 1 in five lines, for any model with an embed / encode split.

    regularizer = AlumRegularizer(AlumConfig.finetuning())
    x = model.embed(tokens)                                              [B, S, H]
    clean = model.encode(x)                                              logits, or several of them
    out = regularizer(x, clean, model.encode, mask=is_no_pad, parameters=model.parameters())
    (labels_loss(clean) + config.alpha * out.loss).backward()            line 8

It is thin: the ascent is in `ascent.py`, the comparison in `divergence.py`. A caller with another inner loss, another
reduction or several ranks calls `ascend` itself, as pre-training does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron_alum.alum.ascent import Agree, Ascent, Perturb, Start, ascend, identity
from megatron_alum.alum.divergence import (
    Outputs,
    RowDivergence,
    Samples,
    mean_of_rows,
    reference_divergence,
    sum_of_samples,
    tensors,
)
from megatron_alum.alum.dropout import DropoutState, TorchDropoutState, replayed
from megatron_alum.config.alum import AlumConfig
from megatron_alum.reference import tokens as reference

Forward = Callable[[Tensor], Outputs]


@dataclass(frozen=True)
class Kernels:
    """The replaceable tensor operations of an ascent."""

    perturb: Perturb
    """random start or ascent step, projection, and the sum with the embeddings"""
    agree: Agree = identity
    """combines the finite flags of samples over the ranks that share them"""


def reference_kernels() -> Kernels:
    """Torch-only kernels for one process; the oracle for the fused ones."""
    return Kernels(perturb=reference.perturb)


@dataclass(frozen=True)
class AlumOutput:
    """The regulariser's result for one batch."""

    loss: Tensor
    """divergence of clean and adversarial outputs WITHOUT alpha, 0-dim; samples whose gradient was not finite add 0"""
    stats: dict[str, Tensor]
    """0-dim device tensors: effective_perturbation, ascent_ratio (of the last step), nonfinite (samples), and unless
    K = 0 inner_kl_start, inner_kl_last and kl_gain: the inner divergence at the random start, before the last step, and
    its growth from the start to the end; a mean over samples (or rows, with `inner_reduction` batch)"""
    delta: Tensor
    """the perturbation used, as in `Ascent`"""
    adversarial_outputs: Outputs
    """f(x + delta), for callers that need the logits"""


class AlumRegularizer:
    """l(f(x), f(x + delta)) with delta from projected gradient ascent.

    `divergence` compares two outputs row by row; `kernels` replaces the operations of the ascent, `dropout_state` the
    generators that "shared" dropout replays; `plain_backward` and `gradient_scale` as in `ascend`.
    Raises: ValueError for settings of the pre-training loop, which would have no effect here.
    """

    def __init__(
        self,
        config: AlumConfig,
        kernels: Kernels | None = None,
        *,
        divergence: RowDivergence = reference_divergence,
        dropout_state: DropoutState | None = None,
        plain_backward: bool = False,
        gradient_scale: float | Tensor = 1.0,
    ) -> None:
        for name, only in (("ascent", "virtual"), ("nsp", True), ("batch_fraction", 1.0), ("head_chunk_rows", 0)):
            if (value := getattr(config, name)) != only:
                raise ValueError(
                    f"`{name}` must be {only!r} for AlumRegularizer, which compares the outputs it is given, "
                    f"but is {value!r} instead. It is a setting of pre-training."
                )
        self.config = config
        self.kernels = kernels or reference_kernels()
        self.row_divergence = divergence
        self.dropout_state = dropout_state or TorchDropoutState()
        self.plain_backward = plain_backward
        self.gradient_scale = gradient_scale

    def dropout_snapshot(self) -> Any | None:
        """Call right before the clean `forward_from_embeddings` and pass the result on; None unless dropout is
        shared."""
        return self.dropout_state.snapshot() if self.config.dropout == "shared" else None

    def __call__(
        self,
        embeddings: Tensor,
        clean_outputs: Outputs,
        forward_from_embeddings: Forward,
        *,
        mask: Tensor | None = None,
        noise_key: Start | None = None,
        samples: Samples | None = None,
        parameters: Iterable[nn.Parameter] = (),
        dropout_snapshot: Any | None = None,
    ) -> AlumOutput:
        """The second term of line 8 at the perturbation of lines 3 to 6.

        `embeddings` [B, S, H] (other shapes with `samples`) with their graph; `mask` bool, their leading dimensions,
        False = never perturbed; `noise_key` names the random start, a tensor gives it, None draws it from torch's
        default generator; `parameters` are those to freeze during the ascent.
        Raises: ValueError when dropout is shared and `dropout_snapshot` is missing, or `samples` is missing although
        the outputs' first dimension is not the batch size.
        """
        self._check_snapshot(dropout_snapshot)
        samples = samples or Samples.batch_first(embeddings, clean_outputs)
        constant = [part.detach() for part in tensors(clean_outputs)]

        def forward(x: Tensor) -> Outputs:
            with replayed(self.dropout_state, dropout_snapshot):
                return forward_from_embeddings(x)

        def inner_loss(x: Tensor) -> Tensor:
            return self._inner(constant, tensors(forward(x)), samples)

        ascent = ascend(
            embeddings,
            inner_loss,
            start=self._random_start(embeddings) if noise_key is None else noise_key,
            config=self.config,
            perturb=self.kernels.perturb,
            segments=samples.of_tokens,
            num_segments=samples.count,
            mask=mask,
            agree=self.kernels.agree,
            parameters=parameters,
            plain_backward=self.plain_backward,
            gradient_scale=self.gradient_scale,
        )
        x = embeddings.detach() if self.config.detach_embeddings else embeddings
        adversarial = forward((x.to(ascent.delta.dtype) + ascent.delta).to(x.dtype))
        loss = self.divergence(clean_outputs, adversarial, samples, finite=ascent.finite)  # line 8
        stats = self._statistics(ascent, constant, adversarial, samples)
        return AlumOutput(loss, stats, ascent.delta, adversarial)

    def divergence(
        self, clean: Outputs, adversarial: Outputs, samples: Samples, *, finite: Tensor | None = None
    ) -> Tensor:
        """Line 8's l(f(x), f(x + delta)): the symmetric divergence that is minimised, 0-dim, without alpha.

        Sum over the outputs of the mean over their rows; samples that are not `finite` (bool [samples.count]) add 0.
        """
        means = []
        for a, b, owner in zip(tensors(clean), tensors(adversarial), samples.of_rows, strict=True):
            rows = self.row_divergence(a, b, symmetric=True, detach_targets=self.config.detach_targets)
            means.append(mean_of_rows(rows, owner, samples.count, finite=finite))
        return torch.stack(means).sum()

    def _inner(self, clean: list[Tensor], adversarial: list[Tensor], samples: Samples) -> Tensor:
        """What the ascent maximises; `clean` is a constant, so its targets need no further detaching."""
        symmetric = self.config.inner_divergence == "symmetric"
        reduce = sum_of_samples if self.config.inner_reduction == "sample" else mean_of_rows
        terms = []
        for a, b, owner in zip(clean, adversarial, samples.of_rows, strict=True):
            rows = self.row_divergence(a, b, symmetric=symmetric, detach_targets=False)
            terms.append(reduce(rows, owner, samples.count))
        return torch.stack(terms).sum()

    def _statistics(
        self, ascent: Ascent, clean: list[Tensor], adversarial: Outputs, samples: Samples
    ) -> dict[str, Tensor]:
        ratios = reference.perturbation_statistics(ascent.sums)
        stats = {
            "effective_perturbation": ratios.effective_perturbation,
            "ascent_ratio": ratios.ascent_ratio,
            "nonfinite": ascent.nonfinite,
        }
        if ascent.inner_start is None or ascent.inner_last is None:
            return stats
        share = samples.count if self.config.inner_reduction == "sample" else 1
        with torch.no_grad():
            end = self._inner(clean, [part.detach() for part in tensors(adversarial)], samples)
        stats["inner_kl_start"], stats["inner_kl_last"] = ascent.inner_start / share, ascent.inner_last / share
        stats["kl_gain"] = (end - ascent.inner_start) / share
        return stats

    def _random_start(self, x: Tensor) -> Tensor:
        """N(0, sigma^2 I) from torch's default generator."""
        return torch.randn_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) * self.config.noise_std

    def _check_snapshot(self, snapshot: Any | None) -> None:
        if self.config.dropout == "shared" and snapshot is None:
            raise ValueError(
                "`dropout_snapshot` must be given with shared dropout, but is None instead. "
                "Call `dropout_snapshot()` right before the clean forward and pass its result."
            )
