"""What is said of eviction rules (docs/conversations.md) holds in the simulation."""

from __future__ import annotations

import pytest

from benchmarks.eviction import RULES, SLOTS, found, main

LRU = RULES["least recently used"]


def test_as_many_callers_as_slots_always_find_their_conversation() -> None:
    assert found(LRU, 1) == 1.0
    assert found(LRU, SLOTS) > 0.8


@pytest.mark.parametrize("callers", [4, 6, 12])
def test_no_rule_is_clearly_better_where_people_think(callers: int) -> None:
    least_recent = found(LRU, callers)
    assert all(found(rule, callers) < least_recent + 0.04 for rule in RULES.values())


def test_callers_in_turn_are_the_worst_case() -> None:
    assert found(LRU, SLOTS + 1, cyclic=True) == 0.0
    assert found(RULES["random"], SLOTS + 1, cyclic=True) > 0.3


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RULES)
