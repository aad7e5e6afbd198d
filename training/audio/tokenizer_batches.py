"""Batches for the speech tokenizer: whole utterances of like length, some joined, some starting late, with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.audio.clips import MAX_CLIP_SECONDS, Clips, batch_of
from training.run import Shuffle, step_generator
from vita_audio.speech_features import HOP, TOKEN_SAMPLES

_BATCHES_SORTED = 8  # batches drawn together and sorted by length, so that little is padded
_JOINED_SHARE, _MOST_JOINED = 0.15, 3  # long inputs are joined from several clips
_LATE_SHARE = 0.5  # clips that start within their first token, not at its edge


@dataclass(frozen=True, slots=True)
class SpeechBatch:
    """Speech at 16 kHz.

    Attributes:
        wave: [B, n] in [-1, 1], n a multiple of 1280.
        samples: int64 [B] that hold speech.
        texts: what is said.
        output: bool [B], whether it is clean speech of the output voice.
    """

    wave: Tensor
    samples: Tensor
    texts: list[str]
    output: Tensor

    @property
    def valid_frames(self) -> Tensor:
        """Feature frames that hold speech: int64 [B]."""
        return (self.samples + HOP - 1) // HOP

    @property
    def valid_tokens(self) -> Tensor:
        """Float mask of the tokens that hold speech: [B, n / 1280]."""
        tokens = torch.arange(self.wave.shape[1] // TOKEN_SAMPLES, device=self.wave.device)
        return (tokens * TOKEN_SAMPLES < self.samples[:, None]).float()


class SpeechBatches:
    """Endless batches; the batch of a step is a function of (seed, step)."""

    def __init__(self, clips: Clips, batch: int, seed: int, device: torch.device) -> None:
        self.clips, self.batch, self.seed, self.device = clips, batch, seed, device
        self.indices = clips.of_split("train")
        self._shuffle = Shuffle(len(self.indices), seed)

    def __getitem__(self, step: int) -> SpeechBatch:
        group, part = divmod(step, _BATCHES_SORTED)
        rng = step_generator(self.seed, group)
        first = group * _BATCHES_SORTED * self.batch
        rows = [self._row(first + row, rng) for row in range(_BATCHES_SORTED * self.batch)]
        rows.sort(key=lambda row: sum(self.clips[index].samples for index in row))
        part = int(rng.permutation(_BATCHES_SORTED)[part])
        chosen = rows[part * self.batch : (part + 1) * self.batch]
        late = [int(rng.integers(TOKEN_SAMPLES)) * (rng.random() < _LATE_SHARE) for _ in rows]
        return self.make(chosen, late[part * self.batch : (part + 1) * self.batch])

    def make(self, rows: Sequence[Sequence[int]], late: Sequence[int] | None = None) -> SpeechBatch:
        """The batch of these clips: each row is one or more clips, after `late` samples of silence."""
        waves = []
        for number, row in enumerate(rows):
            silence = np.zeros(late[number] if late else 0, np.int16)
            waves.append(np.concatenate([silence, *(self.clips.samples(index) for index in row)]))
        wave, samples = batch_of(waves, TOKEN_SAMPLES)
        return SpeechBatch(
            wave=torch.from_numpy(wave).to(self.device),
            samples=torch.from_numpy(samples).to(self.device),
            texts=[" ".join(self.clips[index].text for index in row) for row in rows],
            output=torch.tensor([all(self.clips[index].output for index in row) for row in rows]).to(self.device),
        )

    def _row(self, position: int, rng: np.random.Generator) -> list[int]:
        row = [self.indices[self._shuffle[position]]]
        if rng.random() < _JOINED_SHARE:
            row += [self.indices[int(i)] for i in rng.integers(len(self.indices), size=rng.integers(1, _MOST_JOINED))]
        limit = (MAX_CLIP_SECONDS - 1) * self.clips.rate_hz
        while len(row) > 1 and sum(self.clips[index].samples for index in row) > limit:
            row.pop()
        return row
