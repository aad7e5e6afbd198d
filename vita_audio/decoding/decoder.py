"""The streaming audio decoder: audio codes of a stream in, 16-bit PCM at 22 050 Hz out, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import EngineError
from vita_audio.contract.rates import mel_frames
from vita_audio.decoding.flow_stream import (
    FlowState,
    WindowSpan,
    advance,
    make_window,
    release_held,
    run_windows,
    window_span,
)
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig, next_decode
from vita_audio.decoding.vocoder_stream import MelChunk, VocoderState, run_chunks
from vita_audio.engines.interface import Floats, FlowEngine, VocoderEngine

Pcm = NDArray[np.int16]


@dataclass(slots=True)
class StreamState:
    """One stream: its codes so far and what the flow and the vocoder carry. Made by `StreamingDecoder.init`."""

    noise: StreamNoise
    flow: FlowState
    vocoder: VocoderState
    codes: list[int] = field(default_factory=list)
    ended: bool = False  # no more codes will come

    @property
    def voiced_frames(self) -> int:
        """Mel frames whose samples have been returned."""
        return self.vocoder.voiced_frames


class StreamingDecoder:
    """Decodes any number of streams, each with its own explicit state; not thread safe (one worker drives it).

    What a stream sounds like is a function of its seed and its codes: never of how they were cut into messages, nor
    (but for float rounding in larger batches) of the other streams. N codes give `contract.output_samples(N)` samples.

    Args:
        flow, vocoder: the engines.
        config: chunk schedule, context and hold-backs.

    Raises:
        EngineError: the engines do not fit together, or `config` does not fit the flow's block grid.
    """

    def __init__(self, flow: FlowEngine, vocoder: VocoderEngine, config: DecoderConfig | None = None) -> None:
        self.flow, self.vocoder = flow, vocoder
        self.config = config or DecoderConfig()
        self.config.check_grid(flow.block_tokens)
        if flow.mel_channels != vocoder.mel_channels:
            raise EngineError(
                f"flow makes {flow.mel_channels} mel channels but the vocoder takes {vocoder.mel_channels}: "
                "build both engines from one checkpoint"
            )

    def init(self, seed: int) -> StreamState:
        """The state of a new stream; `seed` fixes its noise."""
        channels = self.flow.mel_channels
        return StreamState(StreamNoise(seed), FlowState.empty(channels), VocoderState.empty(channels))

    def feed(self, state: StreamState, codes: Iterable[int], end: bool = False) -> None:
        """Append audio codes without decoding; `end` says that these were the last."""
        if state.ended:
            raise EngineError("the stream has ended: it takes no more audio codes")
        state.codes.extend(int(code) for code in codes)
        state.ended = end

    def due(self, state: StreamState) -> int | None:
        """Geometry of the decode that is due, or None if none is. Streams of equal geometry share engine calls.

        The geometry is the flow window's number of mel frames; 0 when only frames already made remain to be voiced.
        """
        due = self._due(state)
        return None if due is None else 0 if due.span is None else due.span.frames

    def step(self, states: Sequence[StreamState]) -> list[Pcm]:
        """Run the one decode that is due for each of these streams, batched; new samples of each (may be empty).

        If an engine raises, no state has changed: the call may be repeated with fewer streams.

        Raises:
            EngineError: nothing is due for a stream, or a wave is not finite.
        """
        decodes = [self._due(state) for state in states]
        windows = [
            make_window(state.flow, due.span, state.codes, state.noise)
            for state, due in zip(states, decodes, strict=True)
            if due is not None and due.span is not None
        ]
        mels = iter(run_windows(self.flow, windows, self.config.flow_steps))
        flows, chunks = [], []
        for state, due in zip(states, decodes, strict=True):
            if due is None:
                raise EngineError("no decode is due for the stream: ask `due` first")
            if due.span is None:
                flow, voiced = release_held(state.flow)
            else:
                flow, voiced = advance(state.flow, due.span, next(mels), self.config, self.flow.block_tokens, due.final)
            flows.append(flow)
            chunks.append(MelChunk(state.vocoder, voiced, state.noise, due.final))
        vocoded = run_chunks(self.vocoder, chunks, self.config)
        pcm = [to_pcm(wave) for _, wave in vocoded]
        for state, flow, (vocoder, _) in zip(states, flows, vocoded, strict=True):
            state.flow, state.vocoder = flow, vocoder
        return pcm

    def push(self, state: StreamState, codes: Iterable[int]) -> Pcm:
        """Append codes and run every decode they make due; the new samples, int16 (empty while all is held back)."""
        self.feed(state, codes)
        return self._drain(state)

    def finish(self, state: StreamState) -> Pcm:
        """End of the stream: everything not voiced yet, int16."""
        self.feed(state, (), end=True)
        return self._drain(state)

    def decode_offline(self, codes: Sequence[int], seed: int) -> Pcm:
        """All codes in one flow window and one vocoder call: what streaming is measured against. int16 samples."""
        if not codes:
            return np.zeros(0, np.int16)
        state = self.init(seed)
        span = WindowSpan(0, len(codes), 0, mel_frames(len(codes)))
        window = make_window(state.flow, span, [int(code) for code in codes], state.noise)
        mel = run_windows(self.flow, [window], self.config.flow_steps)[0]
        (_, wave), *_ = run_chunks(self.vocoder, [MelChunk(state.vocoder, mel, state.noise, final=True)], self.config)
        return to_pcm(wave)

    def warm_up(self, max_batch: int = 1, first_chunk_only: bool = False) -> None:
        """Decode streams of silent codes through every geometry that running streams have, in batches of 1, 2, 4, ...
        to the first that holds `max_batch`, so that no client waits for what an engine does once for a shape.

        Args:
            first_chunk_only: for engines that do nothing once for a shape: a stream's first decode and its end.
        """
        config = self.config
        steady = config.context_tokens + sum(config.chunk_tokens) + 2 * config.chunk_tokens[-1]
        tokens = config.first_chunk_tokens if first_chunk_only else steady
        batch = 1
        while batch < 2 * max_batch:
            states = [self.init(seed) for seed in range(batch)]
            for state in states:
                self.feed(state, [0] * tokens, end=True)
            while self.due(states[0]) is not None:
                self.step(states)
            batch *= 2

    def _due(self, state: StreamState) -> _Due | None:
        tokens, decoded = len(state.codes), state.flow.decoded_tokens
        stop = next_decode(self.config, decoded)
        if tokens >= stop:
            return _Due(self._span(state, stop), final=False)
        if not state.ended or state.voiced_frames == mel_frames(tokens):
            return None
        # The flush. Frames that were made at this very token count are not made again.
        return _Due(self._span(state, tokens) if tokens > decoded else None, final=True)

    def _span(self, state: StreamState, stop_token: int) -> WindowSpan:
        return window_span(state.flow.final_frames, stop_token, self.config.context_tokens, self.flow.block_tokens)

    def _drain(self, state: StreamState) -> Pcm:
        parts = [np.zeros(0, np.int16)]
        while self.due(state) is not None:
            parts += self.step([state])
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _Due:
    """A decode that can run now: its flow window (None: only voice the held frames) and whether it ends the stream."""

    span: WindowSpan | None
    final: bool


def to_pcm(wave: Floats) -> Pcm:
    """float samples in [-1, 1] -> int16 by one constant gain, the same for every chunk.

    Raises:
        EngineError: the wave has a value that is not finite.
    """
    if not np.isfinite(wave).all():
        raise EngineError("the vocoder made samples that are not finite: the mel or the weights are broken")
    return np.clip(np.rint(wave * 32767.0), -32768, 32767).astype(np.int16)
