"""A value that no run can use is refused by its flag's name, whichever option it is; the words for each range."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pytest

from megatron_alum.cli.estimate import EstimateConfig
from megatron_alum.cli.inspect import SampleOptions
from megatron_alum.config.checks import Count, Positive, Range, check_fields
from megatron_alum.config.cli import config_from_dict, config_to_dict, parse_config
from megatron_alum.config.fields import options_of
from megatron_alum.config.finetune import AttackConfig, FinetuneConfig
from megatron_alum.config.run import RunConfig

COMMANDS = {
    RunConfig: ["--data-path", "shards", "--save", "run", "--model-size", "tiny"],
    FinetuneConfig: ["--model", "m", "--output", "o", "--task", "sst2"],
    AttackConfig: ["--model", "m", "--output", "o"],
    SampleOptions: ["--data-path", "shards"],
    EstimateConfig: ["--data-path", "shards", "--dry-run", "--model-size", "tiny", "--vocab-size", "100"],
}
# A seed of the Trainer may be any whole number, a margin of scores any number.
FREE = {(FinetuneConfig, "seeds"), (AttackConfig, "seed"), (FinetuneConfig, "null_score_diff_threshold")}


def numeric(kind):
    """(option, whether it takes fractions) of every option of `kind` that is a number or a list of numbers."""
    for option in options_of(kind):
        if kind is EstimateConfig and option.owner is not kind:
            continue  # those of RunConfig
        number = option.kind.__args__[0] if option.is_list else option.kind
        if number in (int, float) and (kind, option.name) not in FREE:
            yield option, number is float


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range(kind):
    """No count, size, rate or weight is below zero, infinite or no number: an option without a check shows here."""
    checked, fitting = 0, config_to_dict(parse_config(kind, COMMANDS[kind]))
    for option, takes_fractions in numeric(kind):
        for value in ("-1", "nan", "inf") if takes_fractions else ("-1",):
            with pytest.raises(ValueError, match=f"^{option.flag} must be .*, but is .*instead"):
                config_from_dict(kind, {**fitting, option.name: value})
            checked += 1
    assert checked > 3


@dataclass(frozen=True)
class Wheel:
    """A wheel"""

    FLAG_PREFIX: ClassVar[str] = "wheel_"
    bolts: Count = 5
    radius_m: Positive | None = None
    grip: Annotated[float, Range(0, 1, high_open=True)] = 0.5
    rubber: Annotated[float, Range(0, 1, low_open=True)] = 0.5
    wear: Annotated[float, Range(0.25, 1)] = 0.5
    tilt: Annotated[float, Range(2, low_open=True)] = 3.0
    loads: tuple[Positive, ...] = (1.0,)
    side: Literal["left", "right"] | None = "left"
    label: str = ""

    def __post_init__(self):
        check_fields(self)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bolts": 0}, "--wheel-bolts must be at least 1, but is 0 instead."),
        ({"radius_m": 0.0}, "--wheel-radius-m must be positive, but is 0.0 instead."),
        ({"radius_m": float("inf")}, "--wheel-radius-m must be positive and finite, but is inf instead."),
        ({"grip": 1.0}, "--wheel-grip must be at least 0 and below 1, but is 1.0 instead."),
        ({"rubber": 0.0}, "--wheel-rubber must be above 0 and at most 1, but is 0.0 instead."),
        ({"wear": 0.2}, "--wheel-wear must be from 0.25 to 1, but is 0.2 instead."),
        ({"tilt": 2.0}, "--wheel-tilt must be above 2, but is 2.0 instead."),
        ({"loads": (1.0, -2.0)}, "--wheel-loads must be positive, but is -2.0 instead."),
        ({"side": "top"}, "--wheel-side must be one of left, right, but is 'top' instead."),
    ],
)
def test_the_words_of_a_refusal(changes, sentence):
    with pytest.raises(ValueError) as refused:
        Wheel(**changes)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "changes",
    [
        *({"grip": 0.0}, {"rubber": 1.0}, {"wear": 0.25}, {"wear": 1.0}, {"bolts": 1}),
        *({"radius_m": None}, {"side": None}, {"loads": ()}),
    ],
)
def test_closed_ends_and_what_is_left_out_are_admitted(changes):
    assert dataclasses.asdict(Wheel(**changes)).items() >= changes.items()
