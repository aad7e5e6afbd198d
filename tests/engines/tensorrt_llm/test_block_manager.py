"""Block manager: no leak, no block with two owners, refusal when full, the same calls give the same tables."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.block_manager import BlockManager

SLOTS, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT = 4, 4, 6
LONGEST = TOKENS_PER_BLOCK * BLOCKS_PER_SLOT


def blocks_for(tokens: int) -> int:
    return (tokens + TOKENS_PER_BLOCK - 1) // TOKENS_PER_BLOCK


class Pool(RuleBasedStateMachine):
    """Random calls against a plain account of what each slot was promised and how long it is."""

    promised: dict[int, int]  # tokens by open slot
    length: dict[int, int]
    calls: list[tuple]

    @initialize(blocks=st.integers(1, SLOTS * BLOCKS_PER_SLOT))
    def start(self, blocks: int) -> None:
        self.blocks, self.manager = blocks, BlockManager(SLOTS, blocks, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT)
        self.promised, self.length, self.calls = {}, {}, []

    def call(self, verb: str, *arguments: int) -> None:
        self.calls.append((verb, *arguments))
        getattr(self.manager, verb)(*arguments)

    @rule(slot=st.integers(0, SLOTS - 1), tokens=st.integers(1, LONGEST))
    def open(self, slot: int, tokens: int) -> None:
        room = self.blocks - sum(map(blocks_for, self.promised.values()))
        if slot in self.promised:
            with pytest.raises(EngineError, match="open already"):
                self.call("open", slot, tokens)
        elif blocks_for(tokens) > room:
            with pytest.raises(EngineError, match=f"is full.*{room} of {self.blocks}.*try again"):
                self.call("open", slot, tokens)
        else:
            self.call("open", slot, tokens)
            self.promised[slot], self.length[slot] = tokens, 0

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        """Whatever was promised can be had, however the pool is shared."""
        slot = data.draw(st.sampled_from(sorted(self.promised)))
        tokens = data.draw(st.integers(self.length[slot], self.promised[slot]))
        before = self.manager.owned(slot)
        self.call("grow", slot, tokens)
        assert self.manager.owned(slot)[: len(before)] == before
        self.length[slot] = tokens

    @precondition(lambda self: self.promised)
    @rule(data=st.data(), beyond=st.integers(1, 9))
    def grow_too_far(self, data: st.DataObject, beyond: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.promised)))
        before = self.manager.owned(slot)
        with pytest.raises(EngineError, match="opened for"):
            self.call("grow", slot, blocks_for(self.promised[slot]) * TOKENS_PER_BLOCK + beyond)
        assert self.manager.owned(slot) == before

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.promised)))
        tokens = data.draw(st.integers(0, self.length[slot]))
        before = self.manager.owned(slot)
        self.call("rewind", slot, tokens)
        assert self.manager.owned(slot) == before[: blocks_for(tokens)]
        self.length[slot] = tokens

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.promised)))
        self.call("release", slot)
        del self.promised[slot], self.length[slot]

    @invariant()
    def every_block_has_one_place(self) -> None:
        if not hasattr(self, "manager"):
            return
        owned = [b for slot in range(SLOTS) for b in self.manager.owned(slot)]
        assert len(owned) == len(set(owned))
        assert set(owned) <= set(range(self.blocks))
        assert len(owned) + self.manager.free == self.blocks
        for slot in range(SLOTS):
            assert len(self.manager.owned(slot)) == blocks_for(self.length.get(slot, 0))
        assert self.manager.unreserved == self.blocks - sum(map(blocks_for, self.promised.values()))

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        again = BlockManager(SLOTS, self.blocks, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT)
        for verb, *arguments in self.calls:
            with suppress(EngineError):
                getattr(again, verb)(*arguments)
        assert (again.table == self.manager.table).all()
        for slot in list(self.promised):
            self.manager.release(slot)
        assert self.manager.free == self.manager.unreserved == self.blocks


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase


@given(tokens=st.integers(LONGEST + 1, 10 * LONGEST))
def test_a_stream_longer_than_a_table_is_refused(tokens: int) -> None:
    manager = BlockManager(SLOTS, SLOTS * BLOCKS_PER_SLOT, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT)
    with pytest.raises(EngineError, match=f"{tokens} tokens needs {blocks_for(tokens)} blocks, at most 6"):
        manager.open(0, tokens)
    assert manager.unreserved == manager.blocks


@pytest.mark.parametrize("verb", ["grow", "rewind"])
def test_a_closed_slot_is_refused(verb: str) -> None:
    manager = BlockManager(SLOTS, 8, TOKENS_PER_BLOCK, BLOCKS_PER_SLOT)
    with pytest.raises(EngineError, match="slot 2 is not open"):
        getattr(manager, verb)(2, 1)
    with pytest.raises(EngineError, match="slot 2 is not open"):
        manager.release(2)
