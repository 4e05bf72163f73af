"""Algorithm 1 of ALUM (Liu et al. 2020), one function per numbered line, for any model.

The caller owns the model: it hands in embeddings x, outputs f(x) and the function from embeddings to outputs.

    for (x, y) in batches:                                              line 2
        delta ~ N(0, sigma^2 I)                                         line 3   _line_3_random_start
        for m in 1..K:                                                  line 4   ascend
            g = gradient of l(f(x), f(x + delta)) in delta              line 5   _line_5_gradient
            delta = project(delta + eta g)                              line 6   _line_6_step
        minimise l(f(x), y) + alpha l(f(x), f(x + delta))               line 8   divergence: the second l

The parameters are frozen on lines 4 to 6: g needs none of their gradients, and fused weight-gradient accumulation would
write them all the same. Nothing here waits for the device, prints or keeps state between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron_alum.alum.dropout import DropoutState, TorchDropoutState, replayed
from megatron_alum.alum.kernels import Kernels, Outputs, Start, Stats, reference_kernels
from megatron_alum.config.alum import AlumConfig

Forward = Callable[[Tensor], Outputs]


@dataclass(frozen=True)
class Ascent:
    """What lines 3 to 6 found."""

    delta: Tensor
    """the perturbation, shape of the embeddings, float32 (float64 for float64 ones), zero where the mask is False"""
    finite: Tensor
    """bool [B]: False where a gradient was not finite; there delta is the random start and must not count"""
    stats: Stats
    """0-dim device tensors: effective_perturbation, ascent_ratio (of the last step), inner_kl_start (at the random
    start), inner_kl_last (before the last step), nonfinite (number of such samples)"""


@dataclass(frozen=True)
class AlumOutput:
    """The regulariser's result for one batch."""

    loss: Tensor
    """divergence of clean and adversarial outputs WITHOUT alpha, 0-dim; 0 if any gradient was not finite"""
    stats: Stats
    """those of `Ascent`, and kl_gain: inner divergence at delta minus that at the random start"""
    delta: Tensor
    """the perturbation used, as in `Ascent`"""
    adversarial_outputs: Outputs
    """f(x + delta), for callers that need the logits"""


class AlumRegularizer:
    """l(f(x), f(x + delta)) with delta from projected gradient ascent.

    `kernels` replaces the tensor operations, `dropout_state` the generators that "shared" dropout replays.
    `plain_backward` differentiates with `.backward()` instead of `torch.autograd.grad`, which reentrant activation
    recomputation refuses; then every trained parameter must be in `parameters`, or it collects gradients.
    `gradient_scale` multiplies the inner divergence before its backward and is divided out of g: a power of two that
    keeps float16 gradients from vanishing.
    """

    def __init__(
        self,
        config: AlumConfig,
        kernels: Kernels | None = None,
        *,
        dropout_state: DropoutState | None = None,
        plain_backward: bool = False,
        gradient_scale: float | Tensor = 1.0,
    ) -> None:
        self.config = config
        self.kernels = kernels or reference_kernels()
        self.dropout_state = dropout_state or TorchDropoutState()
        self.plain_backward = plain_backward
        self.gradient_scale = gradient_scale

    def dropout_snapshot(self) -> Any | None:
        """Call right before the clean `forward_from_embeddings` and pass the result on; None unless shared."""
        return self.dropout_state.snapshot() if self.config.dropout == "shared" else None

    def __call__(
        self,
        embeddings: Tensor,
        clean_outputs: Outputs,
        forward_from_embeddings: Forward,
        *,
        mask: Tensor | None = None,
        noise_key: Start | None = None,
        parameters: Iterable[nn.Parameter] = (),
        dropout_snapshot: Any | None = None,
    ) -> AlumOutput:
        """The second term of line 8 at the perturbation of lines 3 to 6.

        `embeddings` [B, S, H] ([S, B, H] when `noise_key.batch_first` is False) with their graph; `mask` bool, their
        leading dimensions, False = never perturbed; `noise_key` names the random start, a tensor gives it, None draws
        it from torch's default generator; `parameters` are those to freeze during the ascent.
        Raises: ValueError when dropout is shared and `dropout_snapshot` is missing.
        """
        ascent = self.ascend(
            embeddings,
            clean_outputs,
            forward_from_embeddings,
            mask=mask,
            noise_key=noise_key,
            parameters=parameters,
            dropout_snapshot=dropout_snapshot,
        )
        x = embeddings.detach() if self.config.detach_embeddings else embeddings
        x_adv = (x.to(ascent.delta.dtype) + ascent.delta).to(x.dtype)
        adversarial = self._forward(forward_from_embeddings, x_adv, dropout_snapshot)
        loss = self.divergence(clean_outputs, adversarial)  # line 8
        with torch.no_grad():
            kl_end = self._inner_divergence(_detached(clean_outputs), _detached(adversarial))
        stats = {**ascent.stats, "kl_gain": kl_end - ascent.stats["inner_kl_start"]}
        loss = torch.where(ascent.finite.all(), loss, torch.zeros_like(loss))
        return AlumOutput(loss, stats, ascent.delta, adversarial)

    def ascend(
        self,
        embeddings: Tensor,
        clean_outputs: Outputs,
        forward_from_embeddings: Forward,
        *,
        mask: Tensor | None = None,
        noise_key: Start | None = None,
        parameters: Iterable[nn.Parameter] = (),
        dropout_snapshot: Any | None = None,
    ) -> Ascent:
        """Lines 3 to 6; arguments as in `__call__`. No gradient reaches parameters, embeddings or outputs."""
        self._check_snapshot(dropout_snapshot)
        x, clean = embeddings.detach(), _detached(clean_outputs)
        start = noise_key if noise_key is not None else torch.randn_like(x, dtype=_work(x)) * self.config.noise_std
        batch_dim = 0 if getattr(noise_key, "batch_first", True) else 1
        with frozen(parameters), torch.enable_grad():
            x_adv, first_delta, stats = self._line_3_random_start(x, start, mask)
            delta, finite, kls = first_delta, x.new_ones(x.shape[batch_dim], dtype=torch.bool), []
            for _ in range(self.config.num_ascent_steps):  # line 4
                kl, grad = self._line_5_gradient(x_adv, clean, forward_from_embeddings, dropout_snapshot)
                grad, finite = self._screen(grad, finite, batch_dim)
                x_adv, delta, stats = self._line_6_step(x, delta, grad, mask)
                kls.append(kl)
        return Ascent(
            delta=torch.where(_expand(finite, delta, batch_dim), delta, first_delta),
            finite=finite,
            stats={
                **stats,
                "inner_kl_start": kls[0],
                "inner_kl_last": kls[-1],
                "nonfinite": (~finite).sum(),
            },
        )

    def _line_3_random_start(self, x: Tensor, start: Start, mask: Tensor | None) -> tuple[Tensor, Tensor, Stats]:
        """x + delta and delta ~ N(0, sigma^2 I)."""
        return self._perturb(x, start, None, mask)

    def _line_5_gradient(self, x_adv: Tensor, clean: Outputs, forward: Forward, snapshot: Any) -> tuple[Tensor, Tensor]:
        """l(f(x), f(x + delta)) and its gradient in x + delta, which is that in delta; f(x) is a constant here."""
        leaf = x_adv.detach().requires_grad_(True)
        kl = self._inner_divergence(clean, self._forward(forward, leaf, snapshot))
        scaled = kl * self.gradient_scale
        if self.plain_backward:
            scaled.backward()
            grad = leaf.grad
        else:
            (grad,) = torch.autograd.grad(scaled, leaf)
        assert grad is not None, "forward_from_embeddings does not depend on the embeddings"
        return kl.detach(), grad.to(_work(leaf)) / self.gradient_scale

    def _line_6_step(self, x: Tensor, delta: Start, grad: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Stats]:
        """x + delta and delta after project(delta + eta g)."""
        return self._perturb(x, delta, grad, mask)

    def divergence(self, clean: Outputs, adversarial: Outputs) -> Tensor:
        """Line 8's l(f(x), f(x + delta)): the symmetric divergence that is minimised, 0-dim, without alpha."""
        return self.kernels.divergence(
            self._selected(clean),
            self._selected(adversarial),
            symmetric=True,
            detach_targets=self.config.detach_targets,
        )

    def _inner_divergence(self, clean: Outputs, adversarial: Outputs) -> Tensor:
        """The quantity the ascent climbs; `clean` is detached, so its targets need no further stop of gradients."""
        symmetric = self.config.inner_divergence == "symmetric"
        return self.kernels.divergence(
            self._selected(clean), self._selected(adversarial), symmetric=symmetric, detach_targets=False
        )

    def _perturb(
        self, x: Tensor, delta: Start, grad: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Stats]:
        config = self.config
        x_adv, moved, stats = self.kernels.perturb(
            x,
            delta,
            grad,
            step_size=config.step_size,
            epsilon=config.epsilon,
            projection=config.projection,
            mask=mask,
            out_dtype=x.dtype,
        )
        return x_adv, moved, dict(stats._asdict() if hasattr(stats, "_asdict") else stats)

    def _screen(self, grad: Tensor, finite: Tensor, batch_dim: int) -> tuple[Tensor, Tensor]:
        """The gradient with zeros for samples where it is not finite, and the flags so far; stays on the device."""
        other_dims = [dim for dim in range(grad.dim()) if dim != batch_dim]
        finite = finite & self.kernels.agree(torch.isfinite(grad).all(dim=other_dims))
        return torch.where(_expand(finite, grad, batch_dim), grad, torch.zeros_like(grad)), finite

    def _forward(self, forward: Forward, embeddings: Tensor, snapshot: Any | None) -> Outputs:
        with replayed(self.dropout_state, snapshot):
            return forward(embeddings)

    def _selected(self, outputs: Outputs) -> Outputs:
        """The outputs that count: without `nsp` only the first of a (MLM, NSP) pair."""
        if self.config.nsp or not isinstance(outputs, (tuple, list)):
            return outputs
        return outputs[0]

    def _check_snapshot(self, snapshot: Any | None) -> None:
        if self.config.dropout == "shared" and snapshot is None:
            raise ValueError(
                "`dropout_snapshot` must be given with shared dropout, but is None instead. "
                "Call `dropout_snapshot()` right before the clean forward and pass its result."
            )


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Turn `requires_grad` off for `parameters` in the body; restore each one's own value, errors included."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def adversarial_count(batch_size: int, batch_fraction: float) -> int:
    """Samples of a micro-batch that take the adversarial branch: the nearest whole number to its share, at least one.

    Micro-batches are shuffled, so the first so many are a random subset and their mean is unbiased.
    """
    return max(1, round(batch_size * batch_fraction))


def _detached(outputs: Outputs) -> Outputs:
    """The same structure without graph."""
    if outputs is None:
        return None
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, Mapping):
        return {name: _detached(value) for name, value in outputs.items()}
    values = [_detached(value) for value in outputs]
    return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)


def _expand(flags: Tensor, like: Tensor, batch_dim: int) -> Tensor:
    """bool [B] as a tensor that broadcasts over `like`."""
    shape = [1] * like.dim()
    shape[batch_dim] = -1
    return flags.view(shape)


def _work(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 embeddings."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
