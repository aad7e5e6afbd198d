"""For how long something has not moved, in time in which the watcher ran itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.stalls import LONGEST_STEP_S, Stillness

steps = st.lists(st.tuples(st.floats(0, 100), st.booleans(), st.sampled_from([1.0, 0.1])), max_size=50)


@given(steps)
def test_seconds_are_the_weighted_steps_since_the_sign_last_changed(looks: list[tuple[float, bool, float]]) -> None:
    stillness, now, sign, expected = Stillness(), 0.0, 0, 0.0
    stillness.look(now)
    assert stillness.seconds("part", sign) == 0.0
    for step_s, moved, weight in looks:
        now += step_s
        sign += moved
        expected = 0.0 if moved else expected + min(step_s, LONGEST_STEP_S) * weight
        stillness.look(now)
        assert stillness.seconds("part", sign, weight) == pytest.approx(expected, abs=1e-6)


def test_a_watcher_that_was_stopped_has_seen_nothing() -> None:
    stillness = Stillness()
    for now in (0.0, 0.1, 3600.0):
        stillness.look(now)
        seconds = stillness.seconds("part", "same")
    assert seconds == pytest.approx(0.1 + LONGEST_STEP_S)


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    stillness = Stillness()
    for now in (10.0, 10.2, 5.0, 5.1):
        stillness.look(now)
        seconds = stillness.seconds("part", "same")
    assert seconds == pytest.approx(0.3)


def test_parts_are_apart() -> None:
    stillness = Stillness()
    for now in (0.0, 0.2, 0.4):
        stillness.look(now)
        moving, still = stillness.seconds("moving", now), stillness.seconds("still", 0)
    assert (moving, still) == (0.0, pytest.approx(0.4))
