"""Which slot to give up when more conversations go on than there are slots: rules compared by a simulation.

    python -m benchmarks.eviction                    (10 seconds; no server)

Each caller has one conversation of eight turns after the other, speaks or thinks between two answers, and waits for a
slot when none is free. A turn "finds" its conversation when no other has taken the slot of its last turn. "cyclic":
all think for the same time, so that callers come in turn, always in the same order.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.record import markdown_table

SLOTS, CALLERS = 4, (4, 5, 6, 8, 12, 20)
_TURNS, _ANSWER_S, _THINK_S = 8, 1.0, 8.0
_ANSWER_SPREAD, _THINK_SPREAD = 0.5, 0.8  # of their logarithms
_COUNTED = 4000


@dataclass(slots=True)
class Slot:
    """The conversation it holds (-1: none), when it is free, and how many turns of that conversation it has read."""

    conversation: int = -1
    free_s: float = 0.0
    turns: int = 0


Rule = Callable[[Sequence[Slot], random.Random], Slot]
#: Of the free slots, the one that is given up.
RULES: dict[str, Rule] = {
    "least recently used": lambda free, _: min(free, key=lambda slot: slot.free_s),
    "most recently used": lambda free, _: max(free, key=lambda slot: slot.free_s),
    "random": lambda free, choice: choice.choice(free),
    "fewest turns": lambda free, _: min(free, key=lambda slot: (slot.turns, slot.free_s)),
}


def found(rule: Rule, callers: int, cyclic: bool = False, seed: int = 0) -> float:
    """The share of later turns that find their conversation in a slot."""
    choice, slots = random.Random(seed), [Slot() for _ in range(SLOTS)]
    at = [(choice.uniform(0, _THINK_S), caller) for caller in range(callers)]
    heapq.heapify(at)
    turns = [0] * callers
    hits = later = 0
    for _ in range(_COUNTED):
        now_s, caller = heapq.heappop(at)
        now_s = max(now_s, min(slot.free_s for slot in slots))
        conversation, turn = turns[caller] // _TURNS * callers + caller, turns[caller] % _TURNS
        free = [slot for slot in slots if slot.free_s <= now_s]
        held = [slot for slot in free if slot.conversation == conversation]
        slot = held[0] if held else next((slot for slot in free if slot.conversation < 0), None) or rule(free, choice)
        hits, later = hits + bool(turn and held), later + bool(turn)
        answer_s = _ANSWER_S if cyclic else _ANSWER_S * math.exp(choice.gauss(0, _ANSWER_SPREAD))
        think_s = _THINK_S if cyclic else _THINK_S * math.exp(choice.gauss(0, _THINK_SPREAD))
        slot.turns = slot.turns + 1 if held else 1
        slot.conversation, slot.free_s, turns[caller] = conversation, now_s + answer_s, turns[caller] + 1
        heapq.heappush(at, (slot.free_s + think_s, caller))
    return hits / later


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m benchmarks.eviction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    rows = [
        [name, *(f"{found(rule, n):.0%}" for n in CALLERS), *(f"{found(rule, n, cyclic=True):.0%}" for n in (5, 8))]
        for name, rule in RULES.items()
    ]
    columns = [*(f"{n} callers" for n in CALLERS), "5, cyclic", "8, cyclic"]
    print(f"Later turns that find their conversation, on {SLOTS} slots\n")
    print(markdown_table("given up|" + "|".join(columns), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
