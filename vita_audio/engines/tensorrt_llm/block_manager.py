"""Which blocks of the pool each slot owns. One table per slot serves backbone and MCTP modules alike.

The pool has blocks for the longest stream in every slot (`layout.py` refuses otherwise), so a stream that was admitted
can always go on, and a slot may keep its blocks when its stream has ended: the next one may continue there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import EngineError


class BlockManager:
    """Deterministic: the same calls give the same tables. Holds numbers, no memory.

    Args:
        slots: streams that may be open at once.
        blocks: blocks of the pool, at least slots * blocks_per_slot.
        tokens_per_block: positions of one block.
        blocks_per_slot: the most one stream may own (width of a table).
    """

    def __init__(self, slots: int, blocks: int, tokens_per_block: int, blocks_per_slot: int) -> None:
        self.tokens_per_block = tokens_per_block
        #: Block of each run of `tokens_per_block` positions: int32 [slots, blocks_per_slot]; 0 where none is owned.
        self.table: NDArray[np.int32] = np.zeros((slots, blocks_per_slot), np.int32)
        self._owned = [0] * slots
        self._free = list(range(blocks - 1, -1, -1))  # a stack: the block freed last is used first

    @property
    def free(self) -> int:
        """Blocks that no slot owns."""
        return len(self._free)

    def owned(self, slot: int) -> list[int]:
        """The slot's blocks in the order of its positions."""
        return self.table[slot, : self._owned[slot]].tolist()

    def resize(self, slot: int, tokens: int) -> None:
        """Own blocks for exactly the positions [0, tokens): those that stay keep their blocks.

        Raises:
            EngineError: more blocks than a table is wide; nothing has changed then.
        """
        needed, widest = -(-tokens // self.tokens_per_block), self.table.shape[1]
        if needed > widest:
            raise EngineError(f"slot {slot}: {tokens} tokens need {needed} blocks, at most {widest} fit; lower context")
        while self._owned[slot] > needed:
            self._owned[slot] -= 1
            self._free.append(int(self.table[slot, self._owned[slot]]))
            self.table[slot, self._owned[slot]] = 0
        while self._owned[slot] < needed:
            self.table[slot, self._owned[slot]] = self._free.pop()
            self._owned[slot] += 1
