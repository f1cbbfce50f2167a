"""Time as people write it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.config import format_seconds, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1us", 1e-6), ("1µs", 1e-6), ("10ms", 0.01), ("1.5s", 1.5), (" 2 s ", 2.0), ("0s", 0.0), ("1000ms", 1.0)],
)
def test_a_time_is_read_with_its_unit(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "ms", "-1s", "1 h", "1e3s", "1,5s", "ten ms", "1s 2s", "nan s"])
def test_a_time_without_a_unit_or_number_says_what_to_write(text):
    message = f'expected a time with its unit, got "{text}" (write 1us, 10ms or 2s)'
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (1e-6, "1 us"),
        (12.34e-6, "12.3 us"),
        (0.0034, "3.4 ms"),
        (0.0009999, "1 ms"),
        (0.9999, "1 s"),
        (0.9994, "999 ms"),
        (1.2, "1.2 s"),
        (999.4, "999 s"),
        (1234.5, "1234 s"),
        (-0.0034, "-3.4 ms"),
    ],
)
def test_a_time_is_told_to_three_digits_in_the_unit_that_fits(seconds, text):
    assert format_seconds(seconds) == text


@given(st.floats(1e-6, 1e5))
def test_what_is_told_reads_back_to_three_digits(seconds):
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.0051)
