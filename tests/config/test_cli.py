"""The command line built from dataclasses: precedence, conversion, help and the wording of every refusal."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from megatron_alum.config.cli import config_from_dict, config_to_dict, format_changes, main_guard, parse_config


@dataclass(frozen=True)
class Engine:
    """Engine

    What drives it.
    """

    FLAG_PREFIX: ClassVar[str] = "engine_"
    power_kw: float = 50.0
    """power in kilowatts,
    at 100 % load"""
    turbo: bool = False
    """with a turbocharger"""


@dataclass(frozen=True)
class Body:
    """Body"""

    doors: int = 5
    """number of doors"""
    height_m: float | None = None
    """height in metres; by default what the doors need"""
    seats: tuple[int, ...] = (2, 3)
    """seats of each row"""
    colour: Literal["red", "blue"] = "red"
    """paint"""

    def __post_init__(self) -> None:
        """Refuse a body without a door."""
        if self.doors < 1:
            raise ValueError(f"--doors must be at least 1, but is {self.doors} instead.")


@dataclass(frozen=True)
class Car:
    """This car"""

    plates: tuple[str, ...]
    """one or more number plates"""
    engine: Engine = field(default_factory=Engine)
    body: Body = field(default_factory=Body)


def test_defaults_are_those_of_the_dataclasses():
    assert parse_config(Car, ["--plates", "A1", "B2"]) == Car(plates=("A1", "B2"))


def test_a_list_given_twice_is_refused_and_a_single_value_replaced():
    """A list's second mention would drop the first's values; launchers append flags to replace single ones."""
    with pytest.raises(ValueError, match="--plates must be given once, with all its values, but is given again"):
        parse_config(Car, ["--plates", "A1", "--doors", "3", "--plates", "B2"])
    assert parse_config(Car, ["--plates", "A1", "--doors", "3", "--doors", "4"]).body.doors == 4


def test_flags_reach_the_nested_fields():
    car = parse_config(Car, "--plates X --engine-power-kw 1e2 --engine-turbo --doors 3 --colour blue".split())
    assert car == Car(("X",), Engine(100.0, True), Body(doors=3, colour="blue"))


@pytest.mark.parametrize(
    ("words", "turbo"), [("", True), ("true", True), ("False", False), ("0", False), ("yes", True)]
)
def test_booleans_take_a_word_or_none(words, turbo):
    assert parse_config(Car, ["--plates", "X", "--engine-turbo", *words.split()]).engine.turbo is turbo


def test_flags_override_yaml_which_overrides_defaults(tmp_path):
    path = tmp_path / "car.yaml"
    path.write_text("# comment\nplates: [P, Q]\nengine-power-kw: 1e-1\nengine_turbo: true\ndoors: 3\n")
    car = parse_config(Car, ["--config", str(path), "--doors", "7"])
    assert car == Car(("P", "Q"), Engine(0.1, True), Body(doors=7))  # PyYAML alone reads 1e-1 as text


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            "--plates X --engine-powr-kw 3",
            "--engine-powr-kw is not an option of this program. Did you mean --engine-power-kw?",
        ),
        ("--plates X --zzzzzz", "--zzzzzz is not an option of this program. See --help."),
        ("--plates X --door 3", "--door is not an option of this program. Did you mean --doors?"),
        ("--plates X --doors two", "--doors must be a whole number, but is 'two' instead."),
        ("--plates X --doors 0", "--doors must be at least 1, but is 0 instead."),
        ("--plates X --engine-power-kw much", "--engine-power-kw must be a number, but is 'much' instead."),
        ("--plates X --engine-turbo maybe", "--engine-turbo must be true or false, but is 'maybe' instead."),
        ("--plates X --colour green", "--colour must be one of red, blue, but is 'green' instead. Did you mean red?"),
        ("--doors 3", "--plates must be given, but is not."),
        ("--plates X --doors", "argument --doors: expected one argument. See --help."),
    ],
)
def test_refusals_on_the_command_line(argv, sentence):
    with pytest.raises(ValueError) as caught:
        parse_config(Car, argv.split())
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("plates: X\ndoor: 3\n", "door is not an option of this program. Did you mean --doors?"),
        ("plates: X\ndoors: true\n", "--doors must be a whole number, but is True instead."),
        ("plates: X\ndoors: 2.5\n", "--doors must be a whole number, but is 2.5 instead."),
        ("plates: X\nengine-turbo: 3\n", "--engine-turbo must be true or false, but is 3 instead."),
        ("- a\n- b\n", "must hold `name: value` lines, but holds a list instead."),
        ("a: [\n", "must be a YAML file, but does not parse"),
    ],
)
def test_refusals_in_yaml_name_the_file(tmp_path, text, part):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        parse_config(Car, ["--config", str(tmp_path / "bad.yaml")])
    assert part in str(caught.value)


def test_help_shows_docstrings_defaults_and_sections(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_config(Car, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert exit_info.value.code == 0
    assert "power in kilowatts, at 100 % load (default: 50.0)" in text
    assert "one or more number plates (required)" in text
    assert "--colour {red,blue}" in text and "What drives it." in text
    assert "seats of each row (default: 2 3)" in text
    assert "height in metres; by default what the doors need --seats" in text  # which "(default: none)" contradicts


def test_help_keeps_an_example_and_fills_paragraphs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    example = "A car.\n\n    car --plates X \\\n        --doors 3"
    with pytest.raises(SystemExit):
        parse_config(Car, ["--help"], description=f"{example}\n")
    assert f"\n{example}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse_config(Car, ["--help"], description="a long word " * 10)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50


def help_of(capsys, **options):
    with pytest.raises(SystemExit):
        parse_config(Car, ["--help"], **options)
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_the_defaults_of_the_program(capsys):
    """A value that the program fills in is not required, and is not shown either: it stands for an unused one."""
    text = help_of(capsys, defaults={"plates": ("unused",), "doors": 3})
    assert "one or more number plates" in text and "(required)" not in text and "unused" not in text
    assert "number of doors (default: 3)" in text


def test_a_program_has_its_own_usage_and_help_of_options(capsys):
    text = help_of(capsys, usage="PLATE [options]", helps={"plates": "the plate, 100 % of it"})
    assert text.startswith("usage:") and " PLATE [options] " in text
    assert "the plate, 100 % of it" in text and "number plates" not in text


def test_an_option_without_effect_is_not_known_and_keeps_its_default(capsys, tmp_path):
    assert "--doors" not in help_of(capsys, without=("doors",))
    assert parse_config(Car, ["--plates", "A1"], without=("doors",)).body.doors == 5
    (tmp_path / "car.yaml").write_text("doors: 3")
    for words in (["--doors", "3"], ["--config", str(tmp_path / "car.yaml")]):
        with pytest.raises(ValueError, match="doors is not an option of this program"):
            parse_config(Car, ["--plates", "A1", *words], without=("doors",))


def test_a_configuration_survives_json(tmp_path):
    car = Car(("A", "B"), Engine(3.5, True), Body(height_m=1.5))
    flat = config_to_dict(car)
    assert flat["plates"] == ["A", "B"] and flat["engine_power_kw"] == 3.5
    assert config_from_dict(Car, flat) == car


def test_what_is_printed_is_what_differs_from_the_defaults():
    car = Car(("A", "B"), Engine(turbo=True), Body(height_m=1.5, seats=(2, 2)))
    assert format_changes(car).splitlines() == [
        "[Car]",
        "  --plates A B",
        "[engine]",
        "  --engine-turbo true",
        "[body]",
        "  --height-m 1.5",
        "  --seats 2 2",
        "Every other option has its default (--help).",
    ]
    printed = [line.split() for line in format_changes(car).splitlines() if line.startswith("  ")]
    assert parse_config(Car, [word for words in printed for word in words]) == car  # can be given again


def test_a_stored_configuration_with_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="wings is not an option"):
        config_from_dict(Car, {"plates": ["A"], "wings": 2})


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("`x` must be 1."), "`x` must be 1."),
        (FileNotFoundError(2, "No such file", "a.txt"), "a.txt cannot be used: no such file."),
        (OSError("The disk is full."), "The disk is full."),
    ],
)
def test_main_guard_prints_one_line_and_exits_2(capsys, error, sentence):
    def fail():
        raise error

    with pytest.raises(SystemExit) as caught:
        main_guard(fail)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_main_guard_ends_ctrl_c_without_a_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_info:
        main_guard(interrupted)
    assert exit_info.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_main_guard_lets_bugs_through():
    with pytest.raises(ZeroDivisionError):
        main_guard(lambda: 1 / 0)
