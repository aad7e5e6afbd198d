"""Stop sequences: the text ends before the first one, wherever the stream was cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.stop_sequences import StopSequences


def cut(pieces: list[str], *sequences: str) -> tuple[str, bool]:
    stops, told = StopSequences(sequences), ""
    for piece in pieces:
        told += stops.push(piece)
        if stops.found:
            return told, True
    return told + stops.finish(), False


@pytest.mark.parametrize(
    ("text", "sequences", "told", "found"),
    [
        ("one two three", (), "one two three", False),
        ("one two three", ("two",), "one ", True),
        ("one two three", ("three", "two"), "one ", True),
        ("one two", ("two ",), "one two", False),
        ("aab", ("ab",), "a", True),
        ("stop", ("stop",), "", True),
        ("abcd", ("abcd", "bc"), "a", True),  # complete first
        ("xyz", ("yz", "xyz"), "", True),  # complete at once: the longer one
        ("größer é", (" é",), "größer", True),
    ],
)
def test_where_a_text_ends(text: str, sequences: tuple[str, ...], told: str, found: bool) -> None:
    for size in range(1, len(text) + 1):
        assert cut([text[at : at + size] for at in range(0, len(text), size)], *sequences) == (told, found)


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=8),
    sequences=st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_pieces_do_not_matter(pieces: list[str], sequences: list[str]) -> None:
    assert cut(pieces, *sequences) == cut(list("".join(pieces)), *sequences)


def test_only_what_may_begin_a_sequence_is_held_back() -> None:
    stops = StopSequences(["###"])
    assert [stops.push("a#"), stops.push("b"), stops.push("##"), stops.finish()] == ["a", "#b", "", "##"]
