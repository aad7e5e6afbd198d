"""Speech of earlier turns that a Plus checkpoint wants again: kept by the client, sent with the history, dropped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract.messages import Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ, output_samples, whole_tokens
from vita_client import PromptIds, StatusUpdate
from vita_client.request import Request
from vita_client.turns import BLOCK_S, Turns

CLIPS = [np.full(800 * number, 0.1 * number, np.float32) for number in (1, 2, 3)]


def answered(turns: Turns, due: int, clip: np.ndarray | None = None) -> Request:
    """A turn and its answer; the first STATUS wants `due` clips with the next one, later ones are not asked."""
    if clip is not None:
        turns.append_audio(clip)
    request = turns.respond(None if clip is not None else "Go on.")
    turns.event(PromptIds((1, 2)))
    turns.event(StatusUpdate(Status("s", 0, "running", history_clips=due)))
    turns.event(StatusUpdate(Status("s", 1, "failed")))
    turns.end()
    return request


def sent(request: Request) -> list[int]:
    """Samples of the clips of a request, which are those of CLIPS."""
    lengths = [int(length) for length in request.values.get("HISTORY_AUDIO_SAMPLES", ())]
    if lengths:
        clips = [CLIPS[length // 800 - 1] for length in lengths]
        assert np.array_equal(request.values["HISTORY_AUDIO"], np.concatenate(clips))
    return lengths


def test_clips_go_with_the_next_turn_as_many_as_are_due() -> None:
    turns = Turns()
    assert sent(answered(turns, 1, CLIPS[0])) == []
    assert sent(answered(turns, 1)) == [800]  # a typed turn adds none
    assert sent(answered(turns, 2, CLIPS[1])) == [800]
    assert sent(answered(turns, 2, CLIPS[2])) == [800, 1600]  # its oldest turn was dropped
    assert sent(answered(turns, 0)) == [1600, 2400]
    assert sent(answered(turns, 0)) == []


def test_a_base_checkpoint_wants_none_and_none_are_kept() -> None:
    turns = Turns()
    answered(turns, 0, CLIPS[0])
    assert turns.clips == ()
    assert sent(answered(turns, 0)) == []


def test_a_turn_without_an_answer_leaves_the_clips_as_they_were() -> None:
    turns = Turns()
    answered(turns, 1, CLIPS[0])
    turns.append_audio(CLIPS[1])
    turns.respond()
    turns.end()
    assert [len(clip) for clip in turns.clips] == [800]
    assert sent(turns.respond()) == [800]


@pytest.mark.parametrize("due", [0, 1])
def test_what_comes_before_a_clip_is_read_ahead_once(due: int) -> None:
    turns = Turns()
    answered(turns, due, CLIPS[0])
    block = np.full(int(BLOCK_S * 16_000) + 4000, 0.1, np.float32)
    ahead = []
    for _ in range(3):
        turns.append_audio(block)
        ahead.append(turns.read_ahead() is not None)
    assert ahead == [True, not due, not due]


def test_clips_go_on_elsewhere_with_their_history() -> None:
    turns, other = Turns(), Turns()
    answered(turns, 1, CLIPS[2])
    other.history, other.clips = turns.history, turns.clips
    assert sent(other.respond("Go on.")) == [2400]


@given(st.integers(0, 20_000))
def test_sound_of_exactly_so_many_tokens_was_heard_whole(tokens: int) -> None:
    """Also told in whole milliseconds; a little less than a token's sound is a token less."""
    seconds = output_samples(tokens) / OUTPUT_SAMPLE_RATE_HZ
    turns = Turns()
    answered(turns, 0)
    for told in (seconds, round(seconds * 1000) / 1000, int(seconds * 1000) / 1000):
        turns.heard(told)
        assert turns.respond("Go on.").values["HEARD"] == tokens
        turns.end()
    if tokens:
        assert whole_tokens(seconds - 0.005) == tokens - 1


@given(st.floats(0, 3600))
def test_more_seconds_are_never_fewer_tokens(seconds: float) -> None:
    tokens, samples = whole_tokens(seconds), round(seconds * OUTPUT_SAMPLE_RATE_HZ)
    assert output_samples(tokens) <= samples < output_samples(tokens + 1)
