"""When a failed server is started again, and when the launcher gives up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.restart_policy import LONGEST_WAIT_S, RestartPolicy

times = st.floats(0, 1e5)
#: (how long a start took, how long the server was ready)
lives = st.lists(st.tuples(times, times))


@given(st.integers(0, 50), lives)
def test_it_gives_up_after_exactly_so_many_failures_in_a_row(limit: int, failures: list[tuple[float, float]]) -> None:
    policy, row = RestartPolicy(limit), 0
    for start_s, ready_s in failures:
        row = 1 if ready_s > start_s else row + 1
        wait_s = policy.failed(start_s, ready_s)
        assert policy.in_a_row == row
        assert (wait_s is None) == (row > limit)
        if wait_s is None:
            return


@given(st.integers(1, 500))
def test_the_first_start_is_at_once_and_later_ones_wait_ever_longer_up_to_a_limit(limit: int) -> None:
    policy = RestartPolicy(limit)
    waits = [policy.failed(3.0, 0.0) for _ in range(limit)]
    assert waits[0] == 0.0
    assert waits == sorted(waits, key=lambda wait: wait or 0.0)
    assert all(wait is not None and wait <= LONGEST_WAIT_S for wait in waits)
    assert policy.failed(3.0, 0.0) is None


def test_a_server_that_served_for_longer_than_its_start_took_ends_the_row() -> None:
    policy = RestartPolicy(2)
    assert [policy.failed(5.0, 0.0), policy.failed(5.0, 5.0)] == [0.0, 0.5]
    assert [policy.failed(5.0, 5.1), policy.failed(5.0, 0.0), policy.failed(5.0, 0.0)] == [0.0, 0.5, None]


def test_no_restart_at_all() -> None:
    assert RestartPolicy(0).failed(3.0, 1000.0) is None
