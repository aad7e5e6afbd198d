"""Speech of the output voice at 22.05 kHz, cut by mel frames: what flow and vocoder train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.audio.clips import Clips, pack_clips
from training.audio.mel import MelSpectrogram
from vita_audio.contract.rates import MEL_HOP_SAMPLES, OUTPUT_SAMPLE_RATE_HZ

EDGE_FRAMES = 2  # a mel frame sees 384 samples beyond its own 256, on either side


class DecoderClips:
    """Waves of one voice; frames are mel frames of a clip, frame f is the samples [256 f, 256 (f + 1))."""

    def __init__(self, data: Path, voice: str, device: torch.device) -> None:
        """Raises TrainingError: the voice has no clips for training or none for test, or a clip is faulty."""
        self.clips: Clips = pack_clips(data, OUTPUT_SAMPLE_RATE_HZ, voice, outputs_only=True)
        self.device = device
        self.train, self.test = self.clips.of_split("train"), self.clips.of_split("test")
        self._mel = MelSpectrogram().to(device)

    def frames(self, index: int) -> int:
        """Whole and started mel frames of a clip."""
        return -(-self.clips[index].samples // MEL_HOP_SAMPLES)

    def waves(self, indices: list[int], first_frames: list[int], frames: int, edge: int = 0) -> Tensor:
        """Samples of equally many frames, with `edge` more frames on either side: [B, 256 (frames + 2 edge)].

        Silence where a clip has no samples.
        """
        batch = np.zeros((len(indices), MEL_HOP_SAMPLES * (frames + 2 * edge)), np.float32)
        for row, index, first in zip(batch, indices, first_frames, strict=True):
            clip: NDArray[np.int16] = self.clips.samples(index)
            start = MEL_HOP_SAMPLES * (first - edge)
            low, high = max(0, start), min(len(clip), start + len(row))
            if high > low:
                row[low - start : high - start] = clip[low:high]
        return torch.from_numpy(batch / np.float32(32768)).to(self.device)

    def mels(self, indices: list[int], first_frames: list[int], frames: int) -> Tensor:
        """Log-mel of equally many frames: [B, 80, frames]."""
        return self._mel(self.waves(indices, first_frames, frames, EDGE_FRAMES))[:, :, EDGE_FRAMES:-EDGE_FRAMES]

    def mean_mel(self, clips: int = 64) -> Tensor:
        """Mean of each mel channel over some clips of training: [80]."""
        chosen = self.train[:: max(1, len(self.train) // clips)][:clips]
        sums = [self.mels([index], [0], self.frames(index))[0].mean(1) for index in chosen]
        return torch.stack(sums).mean(0)
