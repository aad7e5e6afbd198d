"""What lies between two pieces of a text: pauses, blanks, and one status of the whole."""

from __future__ import annotations

import numpy as np
import pytest

from vita_audio.contract.messages import Status
from vita_client import Event, Pcm, PromptIds, StatusUpdate, TextDelta
from vita_client.joining import PAUSE_S, Joiner

PAUSE = int(PAUSE_S * 22_050)


def sound(before: int, loud: int, after: int) -> Pcm:
    return Pcm(
        np.concatenate([np.zeros(before, np.int16), np.full(loud, -9000, np.int16), np.full(after, 5, np.int16)])
    )


def status(state: str, reason: str = "", seed: int = 0) -> StatusUpdate:
    return StatusUpdate(Status("s", 0, state, reason, seed=seed))  # type: ignore[arg-type]


def joined(*pieces: tuple[str, list[Event]]) -> list[Event]:
    joiner, events = Joiner(), list[Event]()
    for text, came in pieces:
        joiner.begin(text)
        for event in came:
            events += joiner.add(event, 1.0)
    return events + joiner.end()


def samples(events: list[Event]) -> int:
    return sum(len(event.samples) for event in events if isinstance(event, Pcm))


@pytest.mark.parametrize(
    ("first", "after", "before", "silence"),
    [
        ("It rained. ", 0, 0, PAUSE),
        ("It rained. ", 1000, 500, PAUSE),
        ("It rained. ", PAUSE, 7, PAUSE + 7),
        ("A title\n\n", 10, 20, PAUSE),
        ("It rained, ", 10, 20, 30),
        ("It rained ", 0, 0, 0),
    ],
)
def test_the_silence_between_two_pieces(first: str, after: int, before: int, silence: int) -> None:
    events = joined((first, [sound(0, 50, after)]), ("We left.", [sound(before, 50, 0), sound(900, 50, 0)]))
    assert samples(events) == 50 + silence + 50 + 950


def test_silence_in_several_events_counts_together() -> None:
    events = joined(("It rained. ", [sound(0, 9, 100), sound(100, 0, 0)]), ("We left.", [sound(5, 9, 0)]))
    assert samples(events) == 9 + PAUSE + 9


def test_a_blank_where_the_text_has_white_space() -> None:
    events = joined(
        ("It rained.\n", [TextDelta("a")]), ("好。", [TextDelta("b"), TextDelta("c")]), ("好", [TextDelta("d")])
    )
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "a bcd"


@pytest.mark.parametrize(
    ("reasons", "whole"),
    [(["end_token"] * 3, "end_token"), (["end_token", "max_tokens", "end_token"], "max_tokens"), (["x", "y"], "x")],
)
def test_one_status_of_the_whole(reasons: list[str], whole: str) -> None:
    pieces = [("Piece.", [status("running", seed=n), status("done", reason, n)]) for n, reason in enumerate(reasons, 7)]
    statuses = [event.status for event in joined(*pieces) if isinstance(event, StatusUpdate)]
    assert [one.state for one in statuses] == ["running"] * len(reasons) + ["done"]
    assert (statuses[-1].reason, {one.seed for one in statuses}) == (whole, {7})
    assert [one.index for one in statuses] == [*range(0, 2 * len(reasons), 2), 2 * len(reasons) - 1]


def test_a_failure_is_shown_and_ids_of_prompts_are_not() -> None:
    events = joined(("Piece.", [PromptIds((1, 2)), status("failed", "broken")]))
    assert next(event.status.state for event in events if isinstance(event, StatusUpdate)) == "failed"
    assert not any(isinstance(event, PromptIds) for event in events)


def test_a_piece_sounds_from_its_own_first_sound_on() -> None:
    """What is asked for ahead waits for it."""
    joiner = Joiner()
    for piece in ("It rained. ", "We left."):
        joiner.begin(piece)
        joiner.add(status("running"), 1.0)
        assert not joiner.sounds
        joiner.add(sound(0, 50, 0), 1.0)
        assert joiner.sounds
