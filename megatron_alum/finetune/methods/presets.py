"""The fine-tuning methods that can be compared side by side, as rows of a table with their sources.

    none     plain fine-tuning: exactly the Hugging Face Trainer
    alum     Liu et al. 2020, arXiv 2004.08994: alpha 1, one ascent step, constants of section 4.2
    alum-normalized
             alum with a step scaled to the largest component of each token's gradient and a radius of 0.02: the paper's
             1e-5 hardly moves a network. Chosen on one small encoder (docs/study.md)
    smart    Jiang et al. 2020, arXiv 1911.03437: normalised ascent step on the symmetric KL; optional Bregman term
             against a moving average of the model
    freelb   Zhu et al. 2020, arXiv 1909.11764, Algorithm 1: K ascent steps on the task loss, every step's parameter
             gradient is used, the same dropout masks in all steps, L2 ball
    r-drop   Liang et al. 2021, arXiv 2106.14448: divergence of two dropout passes, no perturbation. The label loss is
             that of the first pass only, so that it is the ALUM loss with radius 0.

A row is a starting point: every setting can be changed by `dataclasses.replace` or its flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_alum.config.alum import ASCENT_FIELDS, AlumConfig
from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.config.words import not_one_of

# Fields of AlumConfig for the pre-training loop and its two heads.
PRETRAINING_ONLY = ("start_fraction", "ascent", "batch_fraction", "head_chunk_rows", "nsp")


def _refuse_pretraining(settings: Mapping[str, Any]) -> None:
    """Raise for a field of AlumConfig that fine-tuning does not use and that differs from its preset's."""
    preset = AlumConfig.finetuning()
    for name in PRETRAINING_ONLY:
        usual = getattr(preset, name)
        if (value := settings.get(name, usual)) != usual:
            raise ValueError(f"`{name}` must be {usual} in fine-tuning, which does not use it, but is {value} instead.")


@dataclass(frozen=True)
class FreeLbConfig:
    """Settings of FreeLB; its authors tune them for each task; the defaults here are a compromise."""

    num_steps: int = 3
    """forward and backward passes K per batch"""
    step_size: float = 0.1
    """length of an ascent step in the L2 norm of a sequence"""
    init_magnitude: float = 0.1
    """scale of the uniform start before division by sqrt(tokens * hidden size)"""
    max_norm: float = 0.0
    """radius of the L2 ball of a sequence; 0 does not project"""


@dataclass(frozen=True)
class Method:
    """How the label loss is regularised."""

    name: str
    """one of METHODS; kept in results.jsonl"""
    config: AlumConfig = field(default_factory=AlumConfig.finetuning)
    """the regulariser's settings; alpha 0 switches it off"""
    regularizes: bool = True
    """whether a divergence is added to the label loss"""
    perturbs: bool = True
    """whether the second pass sees perturbed embeddings"""
    bregman_weight: float = 0.0
    """weight mu of the divergence from the moving average of the model (SMART); 0 keeps no average"""
    bregman_momentum: float = 0.99
    """decay of that moving average per optimizer step"""
    freelb: FreeLbConfig | None = None
    """settings of FreeLB's own step, None for every other method"""

    def __post_init__(self) -> None:
        """Raise ValueError for a combination that has no effect."""
        if self.freelb is not None and self.bregman_weight > 0:
            raise ValueError(
                f"`bregman_weight` must be 0 with freelb, whose steps have no divergence, but is {self.bregman_weight}."
            )
        _refuse_pretraining(vars(self.config))

    @property
    def is_plain(self) -> bool:
        """True when training is exactly the Hugging Face Trainer's."""
        has_divergence = self.regularizes and self.config.alpha > 0
        return not has_divergence and self.bregman_weight == 0 and self.freelb is None

    @property
    def ascends(self) -> bool:
        """True when a perturbation climbs the divergence (Algorithm 1, lines 4 to 6)."""
        return self.regularizes and self.perturbs and self.config.alpha > 0 and self.config.num_ascent_steps > 0


METHODS = {
    "none": Method("none", regularizes=False),
    "alum": Method("alum"),
    "alum-normalized": Method(
        "alum-normalized",
        AlumConfig.finetuning(projection="normalized_gradient", epsilon=0.02, step_size=0.02, noise_std=0.002),
    ),
    "smart": Method(
        "smart", AlumConfig.finetuning(projection="normalized_gradient", inner_divergence="symmetric", epsilon=1e-5)
    ),
    "freelb": Method("freelb", regularizes=False, freelb=FreeLbConfig()),
    "r-drop": Method(
        "r-drop",
        # R-Drop averages the two directions: half of our sum.
        AlumConfig.finetuning(alpha=0.5, epsilon=0.0, noise_std=0.0, detach_targets=False),
        perturbs=False,
    ),
}


def method(name: str, **changes: object) -> Method:
    """The preset `name` with AlumConfig fields, or fields of Method, changed.

    Without ascent steps a preset's ascent settings are dropped: SMART is then ALUM, except for its Bregman term.
    Raises: ValueError for an unknown preset; TypeError for an unknown field.
    """
    if name not in METHODS:
        raise ValueError(not_one_of("`method`", name, METHODS))
    preset = METHODS[name]
    own = {key: value for key, value in changes.items() if key in Method.__dataclass_fields__}
    rest = {key: value for key, value in changes.items() if key not in own}
    _refuse_pretraining(rest)
    if rest.get("num_ascent_steps") == 0:
        rest = {**{key: getattr(AlumConfig, key) for key in ASCENT_FIELDS}, **rest}
    return replace(preset, config=replace(preset.config, **rest), **own)  # type: ignore[arg-type]


def method_of(config: FinetuneConfig) -> Method:
    """The preset that the flags name, with their changes."""
    training = config.training
    chosen = method("alum" if training.alum else training.method, **config.alum.given())
    changes: dict[str, Any] = {"bregman_weight": training.bregman_weight}
    if training.bregman_momentum is not None:
        changes["bregman_momentum"] = training.bregman_momentum
    if chosen.freelb is not None:
        changes["freelb"] = replace(chosen.freelb, **config.freelb.given())
    return replace(chosen, **changes)
