"""What was heard of sound that is played as it comes, and after it was cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.realtime.playout import Playout

SECONDS = st.floats(0, 100, allow_nan=False)


def test_it_is_played_at_once_and_in_real_time() -> None:
    playout = Playout()
    playout.sent(2.0, 10.0)
    assert (playout.heard_s(11.0), playout.remaining_s(11.0)) == (1.0, 1.0)
    assert (playout.heard_s(99.0), playout.remaining_s(99.0)) == (2.0, 0.0)


@given(st.lists(SECONDS, min_size=1), SECONDS, st.lists(st.tuples(SECONDS, SECONDS), min_size=1))
def test_once_cut_it_is_silent_and_what_was_heard_never_grows(
    sent: list[float], heard_s: float, later: list[tuple[float, float]]
) -> None:
    playout, now_s = Playout(), 1000.0
    for seconds in sent:
        playout.sent(seconds, now_s)
    playout.stop(heard_s)
    most_s = min(heard_s, sum(sent) + 1e-6)
    for seconds, again_s in later:
        now_s += 1
        playout.sent(seconds, now_s)  # it was under way
        assert playout.remaining_s(now_s) == 0
        assert playout.heard_s(now_s) == playout.sent_s <= most_s
        playout.stop(again_s)
        most_s = min(most_s, again_s)
