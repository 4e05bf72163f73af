"""Settings of the ALUM regulariser: every choice of the paper's Algorithm 1 and every one the paper leaves open.

`AlumConfig()` is the paper's pre-training setting (section 4.2, alpha 10); `AlumConfig.finetuning()` its fine-tuning
one (alpha 1, adversarial from the first step). Where paper and released code differ, the field says what each does.
Flags carry the prefix `--alum-`. Source: Liu et al. 2020, arXiv 2004.08994; the authors' fairseq criterion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from megatron_alum.config.checks import Count, CountOrZero, PositiveOrZero, Range, Share, check_fields, flag_of

# What the ascent alone reads: without effect where it takes no step.
ASCENT_FIELDS = ("step_size", "epsilon", "projection", "inner_divergence", "inner_reduction")


@dataclass(frozen=True)
class AlumConfig:
    """Adversarial regularisation (ALUM)

    Costs are in F, the operations of one forward pass; a standard step takes 3 F.
    """

    FLAG_PREFIX: ClassVar[str] = "alum_"

    start_fraction: Share = 0.5
    """fraction of the training iterations, in [0, 1], before the adversarial phase begins. Paper: 0.5 from scratch,
    0 for continual pre-training; 1 never begins"""
    ascent: Literal["virtual", "label"] = "virtual"
    """where delta's direction comes from: virtual, the divergence from the clean outputs (the paper; 8 F a step of one
    ascent); label, the label loss, which is then trained on at x + delta (conventional adversarial training, the
    paper's Eq. 2; 5 F)"""
    alpha: PositiveOrZero = 10.0
    """weight of the divergence in the loss. Paper: 10 in pre-training, 1 in fine-tuning; 0 switches the branch off"""
    epsilon: PositiveOrZero = 1e-5
    """radius of the L-infinity ball around the embeddings that `clamp` and `normalized_gradient` project onto after a
    step. Paper: 1e-5. `normalize`, the released code's, has no radius and takes no epsilon"""
    step_size: PositiveOrZero = 1e-3
    """size eta of an ascent step, as a factor of the gradient (of the normalised one with `normalized_gradient`).
    Paper: 1e-3"""
    noise_std: PositiveOrZero = 1e-5
    """standard deviation of the random start. The paper calls 1e-5 the variance, the released code uses it as here"""
    num_ascent_steps: CountOrZero = 1
    """gradient steps K of the inner maximisation. Paper and released code: 1. 0 perturbs at random only, without
    projection: the control that shows what the ascent adds, and cheaper by two passes (6 F)"""
    projection: Literal["clamp", "normalize", "normalized_gradient"] = "clamp"
    """clamp: clamp(delta + eta g, +-epsilon), the paper's line 6; normalize: (delta + eta g) / (its largest absolute
    value in the token + 1e-6), the released code, whose radius is about 1 whatever epsilon says;
    normalized_gradient: clamp(delta + eta g / max |g| of the token, +-epsilon), the textbook step of VAT and SMART"""
    perturb: Literal["word", "encoder_input", "layer"] = "word"
    """word: the sub-word embeddings alone, as in the paper; encoder_input: after positions, LayerNorm and dropout, as
    in the released code; layer: the hidden state after --alum-perturb-layer, whose lower layers run once (beyond paper
    and released code; SMAAT, arXiv 2405.17130, has it for fine-tuning). Padding is never perturbed; the released
    code perturbs it too"""
    perturb_layer: Count | None = None
    """layer L0 after which --alum-perturb layer perturbs, counted from 1 and below the number L of layers; cost of a
    step of one ascent: 3 F + 5 F (1 - L0 / L)"""
    dropout: Literal["independent", "shared"] = "independent"
    """independent: each pass draws its own dropout masks, so the divergence also holds an R-Drop term (released code;
    the paper is silent); shared: the adversarial passes reuse the clean pass's masks (FreeLB)"""
    inner_divergence: Literal["kl", "symmetric"] = "kl"
    """what the ascent climbs: KL(clean || adversarial), as in the released code, or that plus its reverse"""
    inner_reduction: Literal["sample", "batch"] = "sample"
    """what a sample's share of the climbed loss is divided by. sample: its own masked tokens (a mean over them, plus
    its next-sentence term), so that g is the gradient of one example as in Algorithm 1, line 2, and the same at every
    batch size; batch: the masked tokens of the whole batch, as in the released code (there those of one GPU's), which
    makes g smaller as the batch grows"""
    detach_targets: bool = True
    """treat the target of each one-way divergence as a constant, as the released code does; false lets gradients flow
    through both sides of both terms"""
    detach_embeddings: bool = False
    """keep the adversarial branch's gradient from what is perturbed and all that lies below it, the embedding table
    first (released code); the paper lets it flow"""
    nsp: bool = True
    """add the divergence of the next-sentence logits to that of the masked-token logits. The paper speaks of the
    masked-token objective; the released code has no next-sentence head"""
    batch_fraction: Annotated[float, Range(0, 1, low_open=True)] = 1.0
    """share rho in (0, 1] of an iteration's samples that take the adversarial branch: the first round(rho x
    --global-batch-size) of them in global order, at least one, on every layout of ranks and micro-batches; cost:
    3 F + 5 F rho. Paper and released code: 1"""
    head_chunk_rows: CountOrZero = 0
    """masked rows per piece of the vocabulary head in the adversarial step, to bound memory; 0 computes all at once"""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, for a value outside its range or one that would have no effect."""
        check_fields(self)
        self._check_layer()
        self._check_effects()

    @property
    def level(self) -> Literal["word", "encoder_input"] | int:
        """Where x is: "word", "encoder_input" or the layer after which it is the hidden state."""
        if self.perturb == "layer":
            assert self.perturb_layer is not None
            return self.perturb_layer
        return self.perturb

    @property
    def climbs_symmetric(self) -> bool:
        """Whether the ascent climbs KL(clean || adversarial) plus its reverse."""
        return self.inner_divergence == "symmetric"

    @classmethod
    def pretraining(cls, **changes: Any) -> AlumConfig:
        """The paper's pre-training setting (alpha 10, from half of the iterations on); `changes` override fields."""
        return cls(**changes)

    @classmethod
    def finetuning(cls, **changes: Any) -> AlumConfig:
        """The paper's fine-tuning setting (alpha 1, adversarial throughout); `changes` override fields."""
        return cls(**{"alpha": 1.0, "start_fraction": 0.0, **changes})

    def _check_layer(self) -> None:
        """Raise unless `perturb_layer` is given with `perturb` layer and with nothing else."""
        if self.perturb == "layer" and self.perturb_layer is None:
            raise ValueError(
                "--alum-perturb-layer must be given with --alum-perturb layer, but is not. Name the layer, from 1 to "
                "one below the number of layers; two thirds of them is a start."
            )
        if self.perturb != "layer" and self.perturb_layer is not None:
            raise ValueError(
                f"--alum-perturb must be layer with --alum-perturb-layer {self.perturb_layer}, but is {self.perturb} "
                "instead. Leave --alum-perturb-layer out, or add --alum-perturb layer."
            )

    def _check_effects(self) -> None:
        """Raise for a setting that was changed although another one leaves it without effect."""
        if self.num_ascent_steps == 0:
            self._require_defaults(ASCENT_FIELDS, "--alum-num-ascent-steps 0", "takes no step and projects nothing")
        if self.projection == "normalize":
            self._require_defaults(
                ("epsilon",), "--alum-projection normalize", "divides by the largest value and has no radius"
            )
        if self.ascent == "label":
            flag, reason = "--alum-ascent label", "has no divergence and no clean outputs"
            self._require_defaults(
                ("inner_divergence", "detach_targets", "detach_embeddings", "head_chunk_rows"), flag, reason
            )
            if self.alpha > 0.0:
                self._require_defaults(("alpha",), flag, reason)
            if self.num_ascent_steps == 0:
                flag, reason = "--alum-num-ascent-steps 0 and --alum-ascent label", "has one pass and climbs nothing"
                self._require_defaults(("nsp", "dropout"), flag, reason)
        if self.dropout == "shared" and self.batch_fraction < 1.0:
            raise ValueError(
                f"--alum-batch-fraction must be 1 with --alum-dropout shared, but is {self.batch_fraction} instead: "
                "a part of the micro-batch would draw other masks."
            )

    def _require_defaults(self, names: tuple[str, ...], flag: str, reason: str) -> None:
        """Raise unless every field of `names` has its default, as `flag` ignores it for `reason`."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                ignored = flag_of(type(self), name)
                value, default = (str(v).lower() if isinstance(v, bool) else v for v in (value, default))
                raise ValueError(
                    f"{ignored} must be {default} with {flag}, which {reason}, but is {value} instead. "
                    f"Leave {ignored} out, or change {flag.split()[0]}."
                )
