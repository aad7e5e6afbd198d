"""Pauses are shortened to their bounds, sounds are kept sample for sample, and a beginning stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.speech_pauses import QUIET, SILENT, is_silent, shorten_pauses

RATE = 16_000


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.3 + 0.1 * np.random.default_rng(seed).random(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((sound(1),), 1),
        ((silence(3), sound(1)), 1.3),
        ((sound(1), silence(3)), 1.3),
        ((silence(3), sound(1), silence(3)), 1.6),
        ((silence(0.2), sound(1), silence(0.2)), 1.4),
        ((sound(1), silence(5), sound(1)), 3),
        ((sound(1), silence(0.9), sound(1)), 2.9),
        ((silence(2),), 2),
        ((silence(2) + QUIET * 0.9,), 2),
        ((sound(0.5), silence(60), sound(0.5), silence(60)), 2.3),
    ],
)
def test_pauses_have_bounds(parts: tuple[np.ndarray, ...], expected: float) -> None:
    made = shorten_pauses(np.concatenate(parts))
    assert len(made) / RATE == pytest.approx(expected, abs=0.02)


@settings(deadline=None)
@given(pauses=st.lists(st.floats(0, 4), min_size=1, max_size=5), cut=st.floats(0, 1))
def test_every_sound_stays_and_a_beginning_keeps_its_beginning(pauses: list[float], cut: float) -> None:
    clip = np.concatenate([part for n, pause in enumerate(pauses) for part in (silence(pause), sound(0.3, n))])
    whole = shorten_pauses(clip)
    assert np.array_equal(whole[whole > QUIET], clip[clip > QUIET])
    beginning = shorten_pauses(clip[: int(len(clip) * cut)])
    if (beginning > QUIET).any():
        # Whatever follows: only a pause at the end may come out longer or shorter.
        sure = int(np.flatnonzero(beginning > QUIET)[-1]) + 1
        assert np.array_equal(beginning[:sure], whole[:sure])


def test_a_noisy_room_has_no_pauses() -> None:
    noise = np.random.default_rng(0).normal(0, 3 * QUIET, 5 * RATE).astype(np.float32)
    assert shorten_pauses(noise) is noise


def test_what_holds_no_speech() -> None:
    assert is_silent(silence(1))
    assert is_silent(np.zeros(0, np.float32))
    assert is_silent(np.full(10, 0.99 * SILENT, np.float32))
    assert not is_silent(np.array([0, -0.01], np.float32))
