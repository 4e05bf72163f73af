"""What a study compares: arms, seeds, probes and tasks, as its YAML has them (examples/study/).

Options of pre-training and fine-tuning are in the YAML file under the names of their flags and are checked by
the commands' own configurations. `{data}` and `{encoder}` in a value are the folders given on the command line. A value
`pilot` of an arm's option is the radius that the pilot chose, `0.1 pilot` a tenth of it, `pilot-alpha` its alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from megatron_alum.config.places import Place

T = TypeVar("T")
Options = Mapping[str, Any]
EQUAL_COST = 8 / 3
"""operations of a step with one ascent (8 F) over those of a standard step (3 F): docs/choosing.md"""
DEFAULT_ALPHA = 10
"""of arms that name none, as in the paper"""
STANDARD = "standard"
"""name of the arm that the others are compared with"""
ORIGINAL = "original"
"""in place of an arm: the encoder that the study starts from"""


@dataclass(frozen=True)
class Arm:
    """One way to spend the second part of pre-training."""

    name: str
    """in rows and folders"""
    options: Options
    """flags that differ from the plan's pre-training options"""
    title: str = ""
    """in tables; the name if empty"""
    equal_cost: bool = False
    """as many steps as cost the same as those of an arm with one ascent (BERT+), with the same initial rate"""
    curve: bool = False
    """fine-tuned from intermediate checkpoints, too (Figure 1 of the paper)"""


@dataclass(frozen=True)
class Pilot:
    """How the radius is chosen: the largest one at which the clean held-out loss is still that of standard training."""

    arm: str
    """arm whose options name the pilot"""
    radii: tuple[float, ...]
    """tried from the largest"""
    alphas: tuple[float, ...] = (10.0,)
    """tried in this order; the next one where no radius of the one before is good enough"""
    fraction: float = 0.1
    """share of an arm's steps"""
    tolerance: float = 0.02
    """nats by which the clean held-out loss may be above that of standard training"""


@dataclass(frozen=True)
class Probes:
    """Held-out losses of every arm."""

    radii: tuple[float, ...]
    """of uniform noise and of PGD on the word embeddings"""
    batches: int = 8
    """global batches of each text"""
    steps: int = 5
    """of PGD"""


@dataclass(frozen=True)
class Downstream:
    """One task that the arms' encoders are fine-tuned on."""

    task: str
    """of `megatron-alum finetune`"""
    options: Options
    """its flags: learning rate, examples, epochs, ..."""
    seeds: tuple[int, ...]
    """of fine-tuning, from every arm"""
    methods: Mapping[str, Options] = field(default_factory=dict)
    """{name: flags} of adversarial fine-tunings from the two best arms"""
    original_seeds: tuple[int, ...] = ()
    """of standard fine-tuning and of all `original_methods` from the encoder that the study starts from"""
    original_methods: Mapping[str, Options] = field(default_factory=dict)
    """{name: flags}"""
    radii: tuple[float, ...] = ()
    """of PGD on the fine-tuned classifier; none where there are no classes"""
    attacked: int = 200
    """examples that are attacked"""
    attack_steps: int = 10
    """of PGD"""
    edits: tuple[int, ...] = ()
    """numbers of edited characters; the worst of several random edits counts"""


@dataclass(frozen=True)
class StudyPlan:
    """A whole study."""

    scale: str
    """smoke, cpu, gpu or paper"""
    question: str
    """what a study of this size can say, for the report"""
    corpus: Options
    """flags of `megatron-alum preprocess`; embedded: the language reference that every Python carries"""
    other_text: Options
    """the same, of another kind of text"""
    pretraining: Options
    """flags of pre-training that start and arms share"""
    start_iters: int
    """standard steps to the common start"""
    arm_iters: int
    """steps of an arm"""
    seeds: tuple[int, ...]
    """of pre-training"""
    arms: tuple[Arm, ...]
    """in the order in which they run; the first one is standard"""
    probes: Probes
    """of every arm"""
    contrasts: tuple[tuple[str, str], ...] = ()
    """pairs of an arm and its control, compared besides all arms with standard"""
    pilot: Pilot | None = None
    """None: the arms name their radii"""
    downstream: tuple[Downstream, ...] = ()
    """tasks"""
    curve_points: int = 3
    """checkpoints after the common start that curves have"""
    launch_only: bool = False
    """too large for one process: print the commands"""

    def __post_init__(self) -> None:
        """Raise ValueError for a plan that could not run or whose arms could not be compared."""
        names = [arm.name for arm in self.arms]
        if not names or names[0] != STANDARD:
            raise ValueError(f"`arms` must begin with {STANDARD}, but begin with {names[0] if names else 'none'}.")
        if ORIGINAL in names or len(set(names)) < len(names):
            raise ValueError(f"`arms` must have different names, none of them {ORIGINAL}, but are {', '.join(names)}.")
        unknown = [name for pair in self.contrasts for name in pair if name not in names]
        if unknown or any(len(pair) != 2 for pair in self.contrasts):
            raise ValueError(f"`contrasts` must be pairs of arms, but are {[list(pair) for pair in self.contrasts]}.")
        if self.pilot is not None and self.pilot.arm not in names:
            raise ValueError(f"`pilot` must name one of the arms, but names {self.pilot.arm}.")
        if self.pilot is None and any(_names_pilot(value) for arm in self.arms for value in arm.options.values()):
            raise ValueError("`pilot` must be given where an arm's option names it, but is not.")
        for name in ("start_iters", "arm_iters", "curve_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        if self.arm_iters % self.curve_points or self.start_iters % self.point_iters:
            raise ValueError(
                f"`start_iters` must be a multiple of arm_iters / curve_points, and that a whole number, but they are "
                f"{self.start_iters}, {self.arm_iters} and {self.curve_points} instead."
            )
        if not self.seeds:
            raise ValueError("`seeds` must have at least one value, but has none.")

    @property
    def point_iters(self) -> int:
        """Steps between two checkpoints of an arm."""
        return self.arm_iters // self.curve_points

    @property
    def total_iters(self) -> int:
        """Steps of the run that an arm is the second part of."""
        return self.start_iters + self.arm_iters

    @property
    def pilot_iters(self) -> int:
        """Steps of a pilot run after the common start."""
        return max(1, round(self.arm_iters * self.pilot.fraction)) if self.pilot else 0

    def total_iters_of(self, arm: Arm) -> int:
        """The same of one arm."""
        return self.start_iters + (round(self.arm_iters * EQUAL_COST) if arm.equal_cost else self.arm_iters)

    def arm(self, name: str) -> Arm:
        """By name."""
        return next(arm for arm in self.arms if arm.name == name)


def read_plan(path: str | Path, *, places: Mapping[str, str]) -> StudyPlan:
    """The plan in a YAML file, `{name}` in its values replaced by `places`.

    Raises: ValueError for a file that is none; OSError when unreadable.
    """
    if (refusal := Place("file").refusal(str(path))) is not None:
        raise ValueError(f"The plan must be {refusal}.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be a YAML file, but does not parse: {' '.join(str(error).split())}") from None
    where = f"{path}: "
    content = _placed(content, places) if isinstance(content, dict) else {}
    if isinstance(content.get("arms"), dict):
        named = content["arms"].items()
        content["arms"] = [_built(Arm, {"name": name, **(arm or {})}, f"{where}arm {name}") for name, arm in named]
    for name, cls in (("probes", Probes), ("pilot", Pilot)):
        if content.get(name) is not None:
            content[name] = _built(cls, content[name], f"{where}{name}")
    content["contrasts"] = [tuple(pair) for pair in content.get("contrasts") or ()]
    content["downstream"] = [_built(Downstream, one, f"{where}downstream") for one in content.get("downstream") or ()]
    return _built(StudyPlan, content, str(path))


def resolved(options: Options, radius: float | None, alpha: float | None) -> dict[str, Any]:
    """An arm's options with the pilot's numbers in place of its name."""
    values = {}
    for name, value in options.items():
        if value == "pilot-alpha":
            value = alpha
        elif _names_pilot(value):
            assert radius is not None
            factor = str(value).removesuffix("pilot").strip()
            value = float(f"{float(factor or 1) * radius:.6g}")
        values[name] = value
    return values


def _names_pilot(value: Any) -> bool:
    return isinstance(value, str) and (value == "pilot-alpha" or value.split()[-1:] == ["pilot"])


def _built(cls: type[T], content: Any, where: str) -> T:
    """The dataclass of a mapping, lists as tuples; raises ValueError for unknown and missing names."""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold `name: value` lines, but does not.")
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    unknown = sorted(set(values) - set(known))
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = sorted(set(needed) - set(values))
    if unknown or missing:
        wrong = f"does not know {unknown[0]}" if unknown else f"has no {missing[0]}"
        raise ValueError(f"{where} must hold the names of a {cls.__name__}, but {wrong}. See examples/study/cpu.yaml.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return cls(**values)


def _placed(value: Any, places: Mapping[str, str]) -> Any:
    """`value` with the placeholders in all of its strings replaced."""
    if isinstance(value, dict):
        return {name: _placed(one, places) for name, one in value.items()}
    if isinstance(value, list):
        return [_placed(one, places) for one in value]
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(f"{{{name}}}", place)
    return value
