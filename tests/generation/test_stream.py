"""One stream's counts: what ends it and with which reason, what a burst may still make, what was not handed out."""

from __future__ import annotations

import pytest

from generation_doubles import BOOST, TURBO, VANILLA, request
from vita_audio.generation.stream import Stream

END = 1


def stream(prompt: int = 5, pattern: tuple[int, ...] = BOOST, max_tokens: int = 40, context: int = 100) -> Stream:
    return Stream("s", request([9] * prompt, pattern, max_tokens), 10, context, {END})


def backbone(one: Stream, *tokens: int) -> None:
    for token in tokens:
        one.extended(len(one.tokens), token)


@pytest.mark.parametrize(
    ("max_tokens", "context", "made", "reason"),
    [(5, 100, 5, "max_tokens"), (50, 10, 5, "context_limit"), (5, 10, 5, "max_tokens"), (6, 10, 5, "context_limit")],
)
def test_the_nearer_limit_ends_a_stream(max_tokens: int, context: int, made: int, reason: str) -> None:
    one = stream(pattern=VANILLA, max_tokens=max_tokens, context=context)
    backbone(one, *[7] * (made - 1))
    assert not one.ended
    backbone(one, 7)
    assert (one.state, one.reason, one.generated) == ("done", reason, made)


def test_an_end_token_ends_at_its_place_even_where_the_limit_is() -> None:
    one = stream(max_tokens=3)
    backbone(one, 7)
    one.burst_done([7, END])
    assert (one.tokens[-3:], one.state, one.reason) == ([7, 7, END], "done", "end_token")
    cut = stream()
    backbone(cut, 7)
    cut.burst_done([8, END, 9, 9])
    assert (cut.tokens[5:], cut.reason) == ([7, 8, END], "end_token")


def test_a_burst_makes_no_more_than_there_is_room_for() -> None:
    one = stream(max_tokens=8)
    assert not one.wants_burst
    backbone(one, 7)
    assert (one.wants_burst, one.burst_size) == (True, 7)
    roomy = stream(max_tokens=80)
    backbone(roomy, 7)
    assert roomy.burst_size == 10
    near = stream(max_tokens=80, context=9)
    backbone(near, 7)
    assert near.burst_size == 3


def test_segments_follow_each_other() -> None:
    """Boost: one of the backbone, ten of the modules, then four and ten again and again."""
    one, made = stream(max_tokens=1000, context=2000), []
    while len(made) < 6:
        count = 0
        while not one.wants_burst:
            backbone(one, 7)
            count += 1
        made.append((count, one.burst_size))
        one.burst_done([7] * one.burst_size)
    assert made == [(1, 10)] + [(4, 10)] * 5


def test_a_segment_without_a_burst_goes_on_with_the_next() -> None:
    one = stream(pattern=(2, 0, 1, 3))
    backbone(one, 7, 7)
    assert not one.wants_burst
    backbone(one, 7)
    assert (one.wants_burst, one.burst_size) == (True, 3)


@pytest.mark.parametrize(("pattern", "uses"), [(VANILLA, False), (TURBO, True), ((5, 0, 1, 2), True), ((5, 0), False)])
def test_only_some_modes_use_the_modules(pattern: tuple[int, ...], uses: bool) -> None:
    assert stream(pattern=pattern).uses_mctp is uses


def test_a_chunk_of_a_prompt_makes_no_token() -> None:
    one = stream(prompt=20)
    one.extended(8, None)
    assert (one.consumed, one.generated, one.wants_burst) == (8, 0, False)
    assert one.cascade_rows_known == 8  # all rows read tokens that are there: ten of them lie ahead
    one.extended(16, None)
    assert one.cascade_rows_known == 10  # row 10 would read the token behind the prompt
    one.extended(20, 7)
    assert (one.consumed, one.cascade_rows_known) == (20, 11)


def test_the_cascade_is_behind_by_the_rows_that_a_burst_guessed() -> None:
    one = stream(prompt=20)
    one.extended(20, 7)
    one.burst_done([7] * 10)
    assert (one.cascaded, len(one.tokens)) == (20, 31)
    short = stream(prompt=1)
    short.extended(1, 7)
    short.burst_done([7] * 2)
    assert short.cascaded == 0


def test_tokens_are_handed_out_once_and_an_end_stands() -> None:
    one = stream(pattern=VANILLA)
    assert one.take_new() == []
    backbone(one, 3, 4)
    assert (one.take_new(), one.take_new(), one.emitted) == ([3, 4], [], 2)
    backbone(one, 5)
    assert one.take_new() == [5]
    one.end("cancelled", "first")
    one.end("failed", "second")
    assert (one.state, one.reason) == ("cancelled", "first")
