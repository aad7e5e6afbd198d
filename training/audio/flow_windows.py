"""Windows the flow trains on: the ones that `decoding.flow_stream` makes it continue when it serves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.audio.decoder_clips import DecoderClips
from training.errors import TrainingError
from training.run import Shuffle, step_generator
from vita_audio.contract.rates import (
    FRAMES_PER_TOKEN_DENOMINATOR,
    FRAMES_PER_TOKEN_NUMERATOR,
    mel_frames,
)

FEWEST_TOKENS = 6  # a window of fewer tokens has nothing to learn from


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """Windows of equal geometry: N tokens and F mel frames.

    Attributes:
        tokens: int64 [B, N].
        frame_token: int64 [B, F], the window token of each frame.
        mel: [B, mels, F], what the flow is to make.
        known: bool [B, F], the frames that are given as its condition.
    """

    tokens: Tensor
    frame_token: Tensor
    mel: Tensor
    known: Tensor

    def rows(self, span: slice) -> FlowBatch:
        """Some of the windows."""
        return FlowBatch(self.tokens[span], self.frame_token[span], self.mel[span], self.known[span])


class FlowWindows:
    """Random windows of the output voice's clips; the batch of a step is a function of (seed, step).

    A window starts on the block grid of the token encoder. Those at the start of a clip have, as the first decode of a
    stream, no condition with probability 1/2, else a prefix of up to 0.8 of the frames (docs/audio.md 2.4). Later ones
    always have one, as they do when served.
    """

    def __init__(
        self,
        clips: DecoderClips,
        indices: list[int],
        codes: list[NDArray[np.int64]],
        block_tokens: int,
        most_tokens: int,
        batch: int,
        seed: int,
    ) -> None:
        """`codes` are those of the clips `indices`. Raises TrainingError: all of these are too short."""
        self.clips, self.block, self.most, self.batch, self.seed = clips, block_tokens, most_tokens, batch, seed
        pairs = zip(indices, codes, strict=True)
        long_enough = sorted(
            ((len(ids), index, ids) for index, ids in pairs if len(ids) >= FEWEST_TOKENS), key=lambda p: p[:2]
        )
        if not long_enough:
            raise TrainingError(
                f"no clip of the output voice has {FEWEST_TOKENS} tokens ({FEWEST_TOKENS * 0.08:.2f} s)"
            )
        self.lengths = np.array([length for length, _, _ in long_enough])
        self.indices = [index for _, index, _ in long_enough]
        self.codes = [ids for _, _, ids in long_enough]
        self._shuffle = Shuffle(len(self.indices), seed)

    def __getitem__(self, step: int) -> FlowBatch:
        rng = step_generator(self.seed, step)
        anchor = self._shuffle[step]
        first = self.block * int(rng.integers(0, max(1, (self.lengths[anchor] - FEWEST_TOKENS) // self.block + 1)))
        longest = min(int(self.lengths[anchor]) - first, self.most)
        tokens = longest if rng.random() < 0.5 else int(rng.integers(FEWEST_TOKENS, longest + 1))
        later = first > 0
        enough = int(np.searchsorted(self.lengths, tokens + (self.block if later else 0)))  # first long enough clip
        rows = [(anchor, first)]
        for other in rng.integers(enough, len(self.lengths), self.batch - 1).tolist():
            starts = (int(self.lengths[other]) - tokens) // self.block
            rows.append((other, self.block * int(rng.integers(1, starts + 1)) if later else 0))
        known = [self._known(later, rng) for _ in rows]
        return self.make([row for row, _ in rows], [start for _, start in rows], tokens, known)

    def make(self, rows: list[int], first_tokens: list[int], tokens: int, known: list[float]) -> FlowBatch:
        """Windows of `tokens` tokens of these rows; `known` is the share of frames that is given.

        All windows are at the start of their clips or none is, because the two differ by a frame.
        """
        device, later = self.clips.device, first_tokens[0] > 0
        frames = mel_frames(tokens) - 1 if later else mel_frames(tokens)
        first_frames = [mel_frames(first + tokens) - frames for first in first_tokens]
        grid = np.array(first_frames)[:, None] + np.arange(frames)
        owner = grid * FRAMES_PER_TOKEN_DENOMINATOR // FRAMES_PER_TOKEN_NUMERATOR - np.array(first_tokens)[:, None]
        ids = np.stack([self.codes[row][first : first + tokens] for row, first in zip(rows, first_tokens, strict=True)])
        given = np.arange(frames) < (np.array(known) * frames).astype(np.int64)[:, None]
        return FlowBatch(
            tokens=torch.from_numpy(ids).to(device),
            frame_token=torch.from_numpy(owner).to(device),
            mel=self.clips.mels([self.indices[row] for row in rows], first_frames, frames),
            known=torch.from_numpy(given).to(device),
        )

    @staticmethod
    def _known(later: bool, rng: np.random.Generator) -> float:
        share = float(rng.uniform(0.0, 0.8))
        return share if later or rng.random() < 0.5 else 0.0
