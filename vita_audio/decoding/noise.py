"""All randomness of a spoken stream, a pure function of its seed and the absolute frame: never of the chunking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import MEL_HOP_SAMPLES
from vita_audio.engines.interface import Floats

# The second key word of the counter-based generator: streams of one seed that must not share values.
_FLOW, _SOURCE, _PHASES = 1, 2, 3
# Frames drawn from one counter: larger blocks waste more at the ends of a request, smaller ones cost more calls.
_FLOW_BLOCK, _SOURCE_BLOCK = 32, 8


@dataclass(frozen=True, slots=True)
class StreamNoise:
    """Noise of one stream. `seed` is any integer; its low 64 bits count."""

    seed: int

    def flow(self, first: int, stop: int, mel_channels: int) -> Floats:
        """Start values z of the flow for the mel frames [first, stop) of the stream -> [mels, frames], N(0, 1)."""
        return self._frames(_FLOW, first, stop, mel_channels, _FLOW_BLOCK).T

    def source(self, first: int, stop: int) -> Floats:
        """Noise of the harmonic source for the mel frames [first, stop) -> [256 * frames], N(0, 1).

        One value a sample serves all harmonics: they enter the source only through their weighted sum
        (see `source.mixed_noise_scale`).
        """
        return self._frames(_SOURCE, first, stop, MEL_HOP_SAMPLES, _SOURCE_BLOCK).reshape(-1)

    def phases(self, harmonics: int) -> NDArray[np.float64]:
        """Phase offset of each harmonic in radians [harmonics]: 0 for the fundamental, U(-pi, pi) above it."""
        key = np.array([self.seed & (2**64 - 1), _PHASES], np.uint64)
        phases = np.random.Generator(np.random.Philox(key=key)).uniform(-np.pi, np.pi, harmonics)
        phases[0] = 0.0
        return phases

    def _frames(self, purpose: int, first: int, stop: int, width: int, block_frames: int) -> Floats:
        """Frames [first, stop) of an endless [frames, width] array that is drawn block by block."""
        if stop <= first:
            return np.zeros((0, width), np.float32)
        blocks = range(first // block_frames, (stop - 1) // block_frames + 1)
        values = np.empty((len(blocks) * block_frames, width), np.float32)
        bits = np.random.Philox(0)
        generator, state = np.random.Generator(bits), bits.state  # to set a state is cheaper than a new generator
        state["state"]["key"] = np.array([self.seed & (2**64 - 1), purpose], np.uint64)
        for row, block in enumerate(blocks):
            # 2^64 counter steps a block: blocks never overlap, however many values the ziggurat rejects.
            state["state"]["counter"] = np.array([0, block, 0, 0], np.uint64)
            bits.state = state
            generator.standard_normal(out=values[row * block_frames : (row + 1) * block_frames], dtype=np.float32)
        offset = first - blocks.start * block_frames
        return values[offset : offset + stop - first]
