"""Settings of the ALUM regulariser: every choice of the paper's Algorithm 1 and every one the paper leaves open.

`AlumConfig()` is the paper's pre-training setting (section 4.2, alpha 10); `AlumConfig.finetuning()` its fine-tuning
one (alpha 1, adversarial from the first step). Where paper and released code differ, the field says what each does.
Flags carry the prefix `--alum-`. Source: Liu et al. 2020, arXiv 2004.08994; the authors' fairseq criterion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class AlumConfig:
    """Adversarial regularisation (ALUM)."""

    FLAG_PREFIX: ClassVar[str] = "alum_"

    start_fraction: float = 0.5
    """Fraction of the training iterations, in [0, 1], before the adversarial phase begins. Paper: 0.5 from scratch,
    0 for continual pre-training; 1 never begins."""
    alpha: float = 10.0
    """Weight of the divergence in the loss. Paper: 10 in pre-training, 1 in fine-tuning; 0 switches the branch off."""
    epsilon: float = 1e-5
    """Radius of the L-infinity ball around the embeddings that `clamp` and `normalized_gradient` project onto."""
    step_size: float = 1e-3
    """Size eta of an ascent step, as a factor of the gradient (of the normalised one with `normalized_gradient`)."""
    noise_std: float = 1e-5
    """Standard deviation of the random start. The paper calls 1e-5 the variance, the released code uses it as here."""
    num_ascent_steps: int = 1
    """Gradient steps K of the inner maximisation. Paper: 1."""
    projection: Literal["clamp", "normalize", "normalized_gradient"] = "clamp"
    """clamp: clamp(delta + eta g, +-epsilon), the paper's line 6; normalize: (delta + eta g) / (its largest absolute
    value in the token + 1e-6), the released code; normalized_gradient: clamp(delta + eta g / max |g| of the token,
    +-epsilon), the textbook step of VAT and SMART."""
    perturb: Literal["word", "encoder_input"] = "word"
    """word: the sub-word embeddings alone, as in the paper; encoder_input: after positions, LayerNorm and dropout, as
    in the released code. Pads are never perturbed."""
    dropout: Literal["independent", "shared"] = "independent"
    """independent: each pass draws its own dropout masks, so the divergence also holds an R-Drop term (released code);
    shared: the adversarial passes reuse the clean pass's masks (FreeLB)."""
    inner_divergence: Literal["kl", "symmetric"] = "kl"
    """What the ascent climbs: KL(clean || adversarial), as in the released code, or that plus its reverse."""
    detach_targets: bool = True
    """Treat the target of each one-way divergence as a constant, as the released code does; false lets gradients flow
    through both sides of both terms."""
    detach_embeddings: bool = False
    """Keep the adversarial branch's gradient from the embedding table (released code); the paper lets it flow."""
    nsp: bool = True
    """Add the divergence of the next-sentence logits to that of the masked-token logits."""
    batch_fraction: float = 1.0
    """Share rho in (0, 1] of each micro-batch's sequences that take the adversarial branch; cost: 3F + 5F rho."""
    head_chunk_rows: int = 0
    """Masked rows per piece of the vocabulary head in the adversarial step, to bound memory; 0 computes all at once."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, for a value outside its range."""
        _require_range("start-fraction", self.start_fraction, 0.0, 1.0)
        _require_range("batch-fraction", self.batch_fraction, 0.0, 1.0, low_open=True)
        for name in ("alpha", "epsilon", "step_size", "noise_std"):
            _require_range(name.replace("_", "-"), getattr(self, name), 0.0, math.inf)
        _require_range("num-ascent-steps", self.num_ascent_steps, 1, math.inf)
        _require_range("head-chunk-rows", self.head_chunk_rows, 0, math.inf)
        _require_word("projection", self.projection, ("clamp", "normalize", "normalized_gradient"))
        _require_word("perturb", self.perturb, ("word", "encoder_input"))
        _require_word("dropout", self.dropout, ("independent", "shared"))
        _require_word("inner-divergence", self.inner_divergence, ("kl", "symmetric"))

    @classmethod
    def pretraining(cls, **changes: Any) -> AlumConfig:
        """The paper's pre-training setting (alpha 10, from half of the iterations on); `changes` override fields."""
        return cls(**changes)

    @classmethod
    def finetuning(cls, **changes: Any) -> AlumConfig:
        """The paper's fine-tuning setting (alpha 1, adversarial throughout); `changes` override fields."""
        return cls(**{"alpha": 1.0, "start_fraction": 0.0, **changes})


def _require_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    """Raise unless `value` is finite and in [low, high], or (low, high] with `low_open`."""
    if not math.isfinite(value) or value > high or value < low or (low_open and value == low):
        bound = f"above {low:g}" if low_open else f"at least {low:g}"
        limit = f" and at most {high:g}" if math.isfinite(high) else " and finite"
        raise ValueError(f"--alum-{name} must be {bound}{limit}, but is {value} instead.")


def _require_word(name: str, value: str, words: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `words`."""
    if value not in words:
        raise ValueError(f"--alum-{name} must be one of {', '.join(words)}, but is {value!r} instead.")
