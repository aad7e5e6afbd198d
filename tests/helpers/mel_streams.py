"""A mel that comes in pieces through the vocoder's half of the decoder: voiced chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import StreamBuffers
from vita_audio.decoding.vocoder_stream import VocoderState, Voice, chunk_inputs, make_wave, plan_chunk
from vita_audio.engines.arrays import HostArrays
from vita_audio.engines.interface import VocoderEngine


def waves_of(
    vocoder: VocoderEngine, mel: np.ndarray, sizes: Sequence[int], seed: int, config: DecoderConfig
) -> tuple[np.ndarray, list[int]]:
    """Wave of mel [mels, frames] that came in pieces of these sizes, the last of them final; frames voiced by each."""
    arrays, noise, state = HostArrays(), StreamNoise(seed), VocoderState()
    buffers = StreamBuffers(arrays, config, 1, mel.shape[1] + 1, len(mel))
    voice, parts, voiced, at = Voice.of(vocoder, noise), [], [], 0
    for number, size in enumerate(sizes):
        buffers.mel[buffers.places(1, at, at + size)] = mel[:, at : at + size].T
        at += size
        chunk = plan_chunk(state, at, size, config, final=number == len(sizes) - 1)
        if (geometry := chunk.geometry) is not None:
            row = chunk_inputs(buffers, 1, chunk, noise, voice)
            frames = np.arange(geometry.before, geometry.before + geometry.source)
            inputs = {name: values[None] for name, values in row.items()} | {"f0_frames": frames}
            parts.append(chunk.voiced(make_wave(arrays, vocoder, buffers, inputs)[0]))
        state = chunk.advance()
        voiced.append(state.voiced_frames)
    return np.concatenate(parts), voiced
