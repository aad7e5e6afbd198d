"""What streams carry from decode to decode: arrays on the engines' device, a slot for each stream.

A slot is a ring of mel frames by absolute number, so that a window of the flow, its condition and a chunk of the
vocoder are all found by index. What a decode reads of earlier ones it leaves as it is: so a decode that failed can be
repeated.
"""

from __future__ import annotations

import numpy as np

from vita_audio.contract.errors import EngineError
from vita_audio.contract.rates import MEL_HOP_SAMPLES, mel_frames
from vita_audio.decoding.schedule import F0_CONTEXT_FRAMES, DecoderConfig
from vita_audio.engines.arrays import Arrays
from vita_audio.engines.interface import Ints


class StreamBuffers:
    """Slots 1 to `streams`; slot 0 is written by the rows that fill a batch up, and read by no stream.

    Args:
        arrays: of the engines.
        config: decides how many held frames a slot has.
        streams: that are decoded at the same time.
        frames: of a ring; at least those from the first that a decode reads to the last that it writes.
        mel_channels: of flow and vocoder.

    Attributes:
        mel: [slots * frames, mels] frames that are final, and those held back.
        held: [slots * 2 * held frames, mels] held frames of the last two decodes in turn: those that a decode fades
            in are not those that it writes.
        noise: [slots * frames, mels] the flow's start noise, uploaded when a frame is first in a window and read by
            every window that it is in.
        source: [slots * frames, 256] the vocoder's source.
        phase: [slots * frames] float64, of the fundamental at the start of each frame, in cycles.
        sample_numbers: [256] float32, 1 to 256.
    """

    def __init__(self, arrays: Arrays, config: DecoderConfig, streams: int, frames: int, mel_channels: int) -> None:
        self.streams, self.frames = streams, frames
        self._held_frames = max(1, config.flow_hold_back_frames)
        places = (streams + 1) * frames
        self.mel = arrays.zeros((places, mel_channels), "float32")
        self.held = arrays.zeros(((streams + 1) * 2 * self._held_frames, mel_channels), "float32")
        self.noise = arrays.zeros((places, mel_channels), "float32")
        self.source = arrays.zeros((places, MEL_HOP_SAMPLES), "float32")
        self.phase = arrays.zeros((places,), "float64")
        self.sample_numbers = arrays.xp.cumsum(arrays.zeros((MEL_HOP_SAMPLES,), "float32") + 1.0, 0)
        self._free = list(range(streams, 0, -1))

    def take(self) -> int:
        """A slot for a new stream, whatever it holds.

        Raises:
            EngineError: all are taken.
        """
        if not self._free:
            raise EngineError(f"streams: {self.streams} are decoded, more do not fit; end one, or make room for more")
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        self._free.append(slot)

    def places(self, slot: int, first: int, stop: int) -> Ints:
        """Where the frames [first, stop) of a slot are in `mel`, `source` and `phase`."""
        return slot * self.frames + np.arange(first, stop) % self.frames

    def held_places(self, slot: int, decodes: int, first: int, stop: int) -> Ints:
        """Where the frames [first, stop) are in `held`, as the decode after `decodes` others reads them."""
        held = self._held_frames
        return (2 * slot + decodes % 2) * held + np.arange(first, stop) % held

    @property
    def held_frames(self) -> int:
        """Frames that a decode writes to `held`, if its window has as many."""
        return self._held_frames


def ring_bytes(config: DecoderConfig, frames: int, mel_channels: int) -> int:
    """Memory of one slot of `StreamBuffers`."""
    held = 2 * max(1, config.flow_hold_back_frames)
    return 4 * mel_channels * (2 * frames + held) + frames * (4 * MEL_HOP_SAMPLES + 8)


def ring_frames(config: DecoderConfig, block_tokens: int) -> int:
    """Frames that a slot needs: context, the largest chunk, and all that is held back or looked back at."""
    tokens = config.context_tokens + block_tokens + max(*config.chunk_tokens, config.first_chunk_tokens)
    held = config.flow_hold_back_frames + config.vocoder_hold_back_frames
    return mel_frames(tokens) + held + config.vocoder_context_frames + 2 * F0_CONTEXT_FRAMES
