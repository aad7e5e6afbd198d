"""Which blocks of the pool each stream owns. One table per slot serves backbone and MCTP modules alike.

Opening a slot reserves what its longest stream can need, and blocks are taken as the stream grows. Reserving costs
throughput when streams stay short, but a stream that was admitted can always go on: the engine interface does not tell
how long a stream will get, and failing one in the middle of a sentence is worse than letting it wait for a slot.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import EngineError


class BlockManager:
    """Deterministic: the same calls give the same tables. Knows numbers only, no memory.

    Args:
        slots: streams that may be open at once.
        blocks: blocks of the pool.
        tokens_per_block: positions of one block.
        blocks_per_slot: the most one stream may ask for (width of a table).
    """

    def __init__(self, slots: int, blocks: int, tokens_per_block: int, blocks_per_slot: int) -> None:
        self.blocks, self.tokens_per_block = blocks, tokens_per_block
        #: Block of each run of `tokens_per_block` positions: int32 [slots, blocks_per_slot]; 0 where none is owned.
        self.table: NDArray[np.int32] = np.zeros((slots, blocks_per_slot), np.int32)
        self._owned = [0] * slots
        self._reserved: list[int | None] = [None] * slots  # None: the slot is closed
        self._free = list(range(blocks - 1, -1, -1))  # a stack: the block freed last is used first

    @property
    def free(self) -> int:
        """Blocks that no stream owns."""
        return len(self._free)

    @property
    def unreserved(self) -> int:
        """Blocks that no open slot may still ask for."""
        return self.blocks - sum(r for r in self._reserved if r is not None)

    def owned(self, slot: int) -> list[int]:
        """The slot's blocks in the order of its positions."""
        return self.table[slot, : self._owned[slot]].tolist()

    def open(self, slot: int, tokens: int) -> None:
        """Reserve blocks for a stream of at most `tokens` positions.

        Raises:
            EngineError: the slot is open already, or the pool has too few blocks left; nothing has changed then.
        """
        needed = self._blocks(tokens)
        if self._reserved[slot] is not None:
            raise EngineError(f"slot {slot} is open already; release it first")
        if needed > self.table.shape[1]:
            raise EngineError(
                f"slot {slot}: a stream of {tokens} tokens needs {needed} blocks, at most {self.table.shape[1]} fit"
            )
        if needed > self.unreserved:
            raise EngineError(
                f"KV cache is full: slot {slot} needs {needed} blocks for {tokens} tokens, {self.unreserved} of "
                f"{self.blocks} are not promised to running streams; try again when one has ended, or lower slots"
            )
        self._reserved[slot] = needed

    def grow(self, slot: int, tokens: int) -> None:
        """Own blocks for positions [0, tokens). Raises EngineError beyond what `open` reserved."""
        reserved, needed = self._promise(slot), self._blocks(tokens)
        if needed > reserved:
            raise EngineError(
                f"slot {slot}: {tokens} tokens do not fit into the {reserved * self.tokens_per_block} it was opened for"
            )
        while self._owned[slot] < needed:
            self.table[slot, self._owned[slot]] = self._free.pop()
            self._owned[slot] += 1

    def rewind(self, slot: int, tokens: int) -> None:
        """Keep positions [0, tokens) and give back every block after them. The reservation stays."""
        self._promise(slot)
        while self._owned[slot] > self._blocks(tokens):
            self._owned[slot] -= 1
            self._free.append(int(self.table[slot, self._owned[slot]]))
            self.table[slot, self._owned[slot]] = 0

    def release(self, slot: int) -> None:
        """Give back everything; the slot may be opened again."""
        self.rewind(slot, 0)
        self._reserved[slot] = None

    def _promise(self, slot: int) -> int:
        reserved = self._reserved[slot]
        if reserved is None:
            raise EngineError(f"slot {slot} is not open")
        return reserved

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.tokens_per_block)
