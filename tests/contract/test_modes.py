"""Decoding patterns: names, numbers, bounds, and the repeating last pair."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.modes import MAX_PATTERN_NUMBER, NAMED_MODES, mode_of, parse_mode


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("vanilla", (8192, 0)),
        ("balance", (1, 4, 3, 8, 4, 10)),
        ("boost", (1, 10, 4, 10)),
        ("turbo", (1, 10)),
    ],
)
def test_named_modes(name: str, pattern: tuple[int, ...]) -> None:
    assert parse_mode(name, mctp_modules=10).pattern == pattern
    assert parse_mode(f" {name.upper()} ").name == name


def test_numbers_of_a_named_mode_get_its_name() -> None:
    assert parse_mode(" 1, 10 ,4,10").name == "boost"
    assert parse_mode("2,3,1,7").name == "2,3,1,7"


def test_last_pair_repeats() -> None:
    pairs = list(islice(parse_mode("1,4,3,8,4,10").segments(), 5))
    assert pairs == [(1, 4), (3, 8), (4, 10), (4, 10), (4, 10)]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("fast", "neither"),
        ("1,10,", "neither"),
        ("1,-1", "neither"),
        ("1;10", "neither"),
        ("1.5,10", "neither"),
        ("1_0,1", "neither"),
        ("１,２", "neither"),
        ("9" * 5000, "neither"),
        ("1", "2 to 64 numbers"),
        ("1,2,3", "pairs"),
        ("0,10", "at least 1 backbone token"),
        ("1,10,0,10", "at least 1 backbone token"),
        (f"{MAX_PATTERN_NUMBER + 1},0", "more than 65536"),
        (",".join(["1"] * 66), "64 numbers"),
        ("1,11", "K = 10"),
    ],
)
def test_bad_modes_name_the_field(text: str, part: str) -> None:
    with pytest.raises(InvalidRequest, match=part) as error:
        parse_mode(text, mctp_modules=10)
    assert error.value.field == "MODE"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["balance", "boost", "turbo"])
@pytest.mark.parametrize("mctp_modules", [0, 4])
def test_named_modes_that_the_model_is_too_small_for(name: str, mctp_modules: int) -> None:
    with pytest.raises(InvalidRequest, match=f"K = {mctp_modules} "):
        parse_mode(name, mctp_modules)
    assert parse_mode("vanilla", mctp_modules).pattern == (8192, 0)


@given(
    pairs=st.lists(st.tuples(st.integers(1, MAX_PATTERN_NUMBER), st.integers(0, 10)), min_size=1, max_size=32),
)
def test_every_valid_pattern_parses_back(pairs: list[tuple[int, int]]) -> None:
    mode = mode_of([number for pair in pairs for number in pair], mctp_modules=10)
    assert parse_mode(mode.name, 10) == mode
    assert parse_mode(",".join(map(str, mode.pattern)), 10) == mode
    assert list(islice(mode.segments(), len(pairs) + 2)) == [*pairs, pairs[-1], pairs[-1]]
    assert mode.name in NAMED_MODES or mode.name.count(",") == len(mode.pattern) - 1


def test_the_client_imports_modes_without_heavy_packages() -> None:
    code = (
        "import sys, vita_audio.contract.modes; print([m for m in ('numpy','torch','tokenizers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
