"""Durations and amounts: the unit fits the size, no figure reads 0.00, none has an exponent; and nothing else prints
them."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_alum.config.words import amount, counted, data_size, duration, figure

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (duration, 0, "0 seconds"),
        (duration, 0.00123, "0.00123 seconds"),
        (duration, 59.94, "59.9 seconds"),
        (duration, 90, "1.5 minutes"),
        (duration, 3600, "1 hour"),
        (duration, 86_400, "24 hours"),
        (duration, 2 * 86_400, "2 days"),
        (duration, 1234.5 * 86_400, "1,234 days"),
        (amount, 0, "0"),
        (amount, 9120, "9,120"),
        (amount, 999_999, "999,999"),
        (amount, 1_234_567, "1.23 million"),
        (amount, 45.6e9, "45.6 billion"),
        (amount, 7.891e12, "7.89 trillion"),
        (data_size, 12, "12 bytes"),
        (data_size, 4_100, "4.1 kB"),
        (data_size, 23_456_789, "23.5 MB"),
        (data_size, 1.34e9, "1.34 GB"),
        (data_size, 2.5e12, "2.5 TB"),
        (figure, 9.999, "10"),
        (figure, 99.95, "100"),
        (figure, 1234.5, "1,234"),
        (figure, 1e-5, "0.00001"),
    ],
)
def test_by_hand(function, value, text):
    assert function(value) == text


def test_nouns():
    assert [counted(n, "seed") for n in (0, 1, 2, 1024)] == ["0 seeds", "1 seed", "2 seeds", "1,024 seeds"]


SCALES = {
    duration: {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400},
    amount: {"": 1, "million": 1e6, "billion": 1e9, "trillion": 1e12},
    data_size: {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
}


@pytest.mark.parametrize("function", SCALES, ids=lambda function: function.__name__)
@given(value=st.floats(1, 1e14))
def test_the_text_is_the_value_to_three_digits(function, value):
    number, _, unit = function(value).partition(" ")
    unit += "s" if unit in ("second", "minute", "hour", "day") else ""
    assert "e" not in number
    read = float(number.replace(",", "")) * SCALES[function][unit]
    slack = 0.5 if unit in ("", "bytes") else 0.0  # whole ones
    assert read == pytest.approx(value, rel=0.0051, abs=slack)


UNITS = re.compile(r"\{[^{}]*(/ ?1e6|/ ?1e9|/ ?86_?400|/ ?3600)[^{}]*\}\S* ?(GB|MB|days?|hours?|h\b|million|billion)")


def test_no_other_code_scales_such_figures_for_a_message():
    """Tables with a unit in the heading may; a sentence may not."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("megatron_alum", "examples", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if UNITS.search(line)
    ]
    assert found == []
