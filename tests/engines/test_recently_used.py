"""What is kept of earlier work: by its key, and never more than the bytes it may have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vita_audio.engines.recently_used import RecentlyUsed


def test_what_was_used_least_recently_is_given_up_first() -> None:
    kept: RecentlyUsed[str] = RecentlyUsed(100)
    kept.put("a", "A", 40)
    kept.put("b", "B", 40)
    assert kept.get("a") == "A"
    kept.put("c", "C", 40)
    assert (kept.get("a"), kept.get("b"), kept.get("c"), len(kept)) == ("A", None, "C", 2)


def test_what_is_larger_than_all_that_may_be_kept_is_not_kept() -> None:
    kept: RecentlyUsed[str] = RecentlyUsed(39)
    kept.put("a", "A", 40)
    assert (kept.get("a"), len(kept)) == (None, 0)


def test_room_is_made_when_it_is_asked_for() -> None:
    kept: RecentlyUsed[str] = RecentlyUsed(100)
    kept.put("a", "A", 90)
    kept.give_up()
    kept.put("b", "B", 90)
    assert (kept.get("a"), kept.get("b")) == (None, "B")


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60)), max_size=60))
def test_the_bound_holds_in_any_order(steps: list[tuple[int, int]]) -> None:
    kept: RecentlyUsed[int] = RecentlyUsed(100)
    sizes: dict[int, int] = {}
    for key, size in steps:
        if kept.get(key) is None:
            kept.put(key, key, size)
            sizes[key] = size
        else:
            assert kept.get(key) == key
    assert sum(size for key, size in sizes.items() if kept.get(key) is not None) <= 100
