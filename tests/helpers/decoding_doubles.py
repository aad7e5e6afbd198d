"""Small numpy stand-ins for the flow and vocoder engines, for tests of the decoder's own logic only.

They have the reach of the real networks: the flow looks at its whole window, the vocoder at 11 frames to either side
and its f0 at 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vita_audio.contract.rates import MEL_HOP_SAMPLES
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.interface import Floats, Ints

MELS = 4
#: Equal chunks, so that tests can count them.
EVERY_20 = DecoderConfig(chunk_tokens=(20,))


def shifted(x: np.ndarray, by: int) -> np.ndarray:
    """x moved along its last axis, zeros coming in."""
    out = np.zeros_like(x)
    if by == 0:
        return x.copy()
    if abs(by) >= x.shape[-1]:
        return out
    if by > 0:
        out[..., by:] = x[..., :-by]
    else:
        out[..., :by] = x[..., -by:]
    return out


class FlowDouble:
    """A flow whose frames depend on their token, their block of tokens, the condition and the mean of the window."""

    mel_channels = MELS
    block_tokens = 10

    def __init__(self, codes: int = 64) -> None:
        self.table = np.random.default_rng(0).standard_normal((codes, MELS)).astype(np.float32)
        self.batches: list[tuple[int, int]] = []  # (windows, frames) of every condition call
        self.seen_codes: list[list[int]] = []

    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        self.batches.append((len(tokens), len(frame_token)))
        self.seen_codes += [list(map(int, row)) for row in tokens]
        rows = self.table[tokens]  # [B, N, mels]
        for start in range(0, tokens.shape[1], self.block_tokens):
            rows[:, start : start + self.block_tokens] += rows[:, start : start + self.block_tokens].mean(
                1, keepdims=True
            )
        return rows[:, frame_token].transpose(0, 2, 1).copy()

    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        assert x.shape == mu.shape == cond.shape
        assert x.dtype == mu.dtype == cond.dtype == np.float32
        local = mu + 0.3 * shifted(mu, 1) + 0.3 * shifted(mu, -1) + 0.1 * shifted(cond, 1)
        out: Floats = (local + 0.1 * mu.mean((1, 2), keepdims=True) - (1 - 0.1 * t) * x).astype(np.float32)
        return out


@dataclass(slots=True)
class NotingEngines:
    """A flow and a vocoder that note the geometries they are asked for."""

    mel_channels: int
    block_tokens: int
    harmonics: int = 1
    source_weight: Floats = field(default_factory=lambda: np.ones(1, np.float32))
    source_bias: float = 0.0
    windows: set[tuple[int, int]] = field(default_factory=set)  # tokens, frames
    velocities: set[int] = field(default_factory=set)  # frames, as those below
    f0s: set[int] = field(default_factory=set)
    waves: set[int] = field(default_factory=set)

    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        self.windows.add((tokens.shape[1], len(frame_token)))
        return np.zeros((len(tokens), self.mel_channels, len(frame_token)), np.float32)

    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        self.velocities.add(x.shape[2])
        return np.zeros_like(x)

    def f0(self, mel: Floats) -> Floats:
        self.f0s.add(mel.shape[2])
        return np.zeros((len(mel), mel.shape[2]), np.float32)

    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        self.waves.add(mel.shape[2])
        return np.zeros_like(source)


class VocoderDouble:
    """A vocoder made of finite filters with the reach of the real one."""

    mel_channels = MELS
    harmonics = 9

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.source_weight = rng.standard_normal(9).astype(np.float32)
        self.source_bias = 0.02
        self.batches: list[tuple[int, int]] = []  # (chunks, frames) of every synthesize call

    def f0(self, mel: Floats) -> Floats:
        level = mel.mean(1)
        taps = sum((0.5 ** abs(by)) * shifted(level, by) for by in range(-5, 6))
        return np.abs(150 + 200 * np.asarray(taps)).astype(np.float32)

    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        assert source.shape == (len(mel), MEL_HOP_SAMPLES * mel.shape[2])
        self.batches.append((len(mel), mel.shape[2]))
        level = mel.mean(1)
        gain = sum((0.8 ** abs(by)) * shifted(level, by) for by in range(-11, 12))
        reach = int(11.4 * MEL_HOP_SAMPLES)
        filtered = source + 0.5 * shifted(source, reach) - 0.5 * shifted(source, -reach)
        wave = np.tanh(np.repeat(np.asarray(gain), MEL_HOP_SAMPLES, axis=1)) * filtered
        return np.clip(0.5 * wave, -0.99, 0.99).astype(np.float32)
