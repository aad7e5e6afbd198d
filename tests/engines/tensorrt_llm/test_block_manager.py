"""Block manager: no leak, no block with two owners, what stays keeps its blocks, equal calls give equal tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.block_manager import BlockManager

SLOTS, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT = 4, 4, 6
LONGEST = TOKENS_PER_BLOCK * BLOCKS_PER_SLOT


def blocks_for(tokens: int) -> int:
    return (tokens + TOKENS_PER_BLOCK - 1) // TOKENS_PER_BLOCK


class Pool(RuleBasedStateMachine):
    """Random calls against a plain account of how long each slot is."""

    @initialize(more=st.integers(0, 9))
    def start(self, more: int) -> None:
        self.blocks = SLOTS * BLOCKS_PER_SLOT + more
        self.manager = BlockManager(SLOTS, self.blocks, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT)
        self.length = [0] * SLOTS
        self.calls: list[tuple[int, int]] = []

    @rule(slot=st.integers(0, SLOTS - 1), tokens=st.integers(0, LONGEST))
    def resize(self, slot: int, tokens: int) -> None:
        """Every slot can have its longest stream, however long the others are."""
        before = self.manager.owned(slot)
        self.calls.append((slot, tokens))
        self.manager.resize(slot, tokens)
        stay = min(len(before), blocks_for(tokens))
        assert self.manager.owned(slot)[:stay] == before[:stay]
        self.length[slot] = tokens

    @rule(slot=st.integers(0, SLOTS - 1), tokens=st.integers(LONGEST + 1, 10 * LONGEST))
    def too_long(self, slot: int, tokens: int) -> None:
        before = self.manager.owned(slot)
        with pytest.raises(
            EngineError, match=f"slot {slot}: {tokens} tokens need {blocks_for(tokens)} blocks, at most 6"
        ):
            self.manager.resize(slot, tokens)
        assert self.manager.owned(slot) == before

    @invariant()
    def every_block_has_one_place(self) -> None:
        if not hasattr(self, "manager"):
            return
        owned = [b for slot in range(SLOTS) for b in self.manager.owned(slot)]
        assert len(owned) == len(set(owned))
        assert set(owned) <= set(range(self.blocks))
        assert len(owned) + self.manager.free == self.blocks
        for slot, tokens in enumerate(self.length):
            assert len(self.manager.owned(slot)) == blocks_for(tokens)
            assert not self.manager.table[slot, blocks_for(tokens) :].any()

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        again = BlockManager(SLOTS, self.blocks, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT)
        for slot, tokens in self.calls:
            again.resize(slot, tokens)
        assert (again.table == self.manager.table).all()


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase


@given(first=st.integers(1, LONGEST), keep=st.integers(0, LONGEST))
def test_a_stream_that_continues_keeps_the_blocks_of_what_it_keeps(first: int, keep: int) -> None:
    manager = BlockManager(SLOTS, SLOTS * BLOCKS_PER_SLOT, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT)
    for slot in range(SLOTS):
        manager.resize(slot, first)
    before = manager.owned(2)
    manager.resize(2, min(keep, first))
    assert manager.owned(2) == before[: blocks_for(min(keep, first))]
