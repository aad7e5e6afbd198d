"""Speech tokens block by block: a block that was run before is not run again.

No position attends to a later block (docs/audio.md 1), so the tokens of a complete block are those of any longer clip
with the same features before its end. Speech is sent again while it goes on; only its last blocks are new.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_features
from vita_audio.engines.recently_used import RecentlyUsed


class Kept(Protocol):
    """Keys and values of a block, wherever they are."""

    @property
    def nbytes(self) -> int: ...


State = TypeVar("State", bound=Kept)


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """What decides the blocks of a speech tokenizer.

    Attributes:
        num_mel_bins, max_frames, frames_per_token: of the network; a piece has at most `max_frames`.
        block_positions: that attend to each other; two frames a position.
        context_frames: before a block, that its convolutions see.
    """

    num_mel_bins: int
    max_frames: int
    frames_per_token: int
    block_positions: int
    context_frames: int = 4

    @property
    def frames(self) -> int:
        """Of a block as it is run: whole blocks of positions, and whole tokens."""
        return 2 * math.lcm(self.block_positions, self.frames_per_token // 2)

    @property
    def most_blocks(self) -> int:
        """Of a piece."""
        return -(-self.max_frames // self.frames)


@dataclass(frozen=True, slots=True)
class BlockRun(Generic[State]):
    """A block that has to be run.

    Attributes:
        features: [mels, context + frames].
        start: its first frame in the piece.
        context: frames before it, 0 or `context_frames` of the sizes.
        valid_frames: of its frames those that hold speech.
        past: states of the blocks before.
    """

    features: Floats
    start: int
    context: int
    valid_frames: int
    past: Sequence[State]

    @property
    def frames(self) -> int:
        return self.features.shape[1] - self.context


@dataclass(frozen=True, slots=True)
class Block(Generic[State]):
    """What a block leaves: an id for each of its tokens, those of padding too, and its keys and values."""

    ids: Ints
    state: State


class BlockwiseSpeechTokenizer(Generic[State]):
    """`BatchedSpeechTokenizerEngine`; a family implements `_run`.

    Args:
        sizes: of the network.
        kept_bytes: of states that are kept for speech that goes on.
        most_pieces: that run together.
    """

    def __init__(self, sizes: BlockSizes, kept_bytes: int, most_pieces: int = 1) -> None:
        self.sizes, self.num_mel_bins = sizes, sizes.num_mel_bins
        self._most_pieces = most_pieces
        #: By the features up to their end, and how many frames of them hold speech.
        self._blocks: RecentlyUsed[Block[State]] = RecentlyUsed(kept_bytes)

    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        return self.tokens_of([(features, valid_frames)])[0]

    def tokens_of(self, pieces: Sequence[tuple[Floats, int]]) -> list[Ints]:
        for features, valid_frames in pieces:
            check_features(features, valid_frames, self.num_mel_bins, self.sizes.max_frames)
        most = self._most_pieces
        return [ids for first in range(0, len(pieces), most) for ids in self._together(pieces[first : first + most])]

    def _together(self, pieces: Sequence[tuple[Floats, int]]) -> list[Ints]:
        """The first block of every piece, then the second of each that has one."""
        width = self.sizes.frames
        hashes = [hashlib.blake2b(digest_size=16) for _ in pieces]
        made: list[list[Block[State]]] = [[] for _ in pieces]
        for start in range(0, max(valid for _, valid in pieces), width):
            keys: dict[int, tuple[bytes, int]] = {}
            blocks: dict[tuple[bytes, int], Block[State]] = {}
            due: dict[tuple[bytes, int], BlockRun[State]] = {}  # equal blocks of two pieces are run once
            context = min(start, self.sizes.context_frames)
            for i, (features, valid_frames) in enumerate(pieces):
                if start >= valid_frames:
                    continue
                stop = min(start + width, features.shape[1])
                hashes[i].update(np.ascontiguousarray(features[:, start:stop]).tobytes())
                keys[i] = key = hashes[i].digest(), min(width, valid_frames - start)
                block = self._blocks.get(key)
                if block is None:
                    past = [one.state for one in made[i]]
                    due[key] = BlockRun(features[:, start - context : stop], start, context, key[1], past)
                else:
                    blocks[key] = block
            for key, block in zip(due, self._run(list(due.values())) if due else (), strict=True):
                blocks[key] = block
                if key[1] == width:  # complete
                    self._blocks.put(key, block, block.state.nbytes)
            for i, key in keys.items():
                made[i].append(blocks[key])
        return [
            np.concatenate([block.ids for block in own])[: -(-valid_frames // self.sizes.frames_per_token)]
            for own, (_, valid_frames) in zip(made, pieces, strict=True)
        ]

    def _run(self, due: Sequence[BlockRun[State]]) -> list[Block[State]]:
        """Run blocks that begin at the same frame, at least one."""
        raise NotImplementedError
