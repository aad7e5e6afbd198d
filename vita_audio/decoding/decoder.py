"""The streaming audio decoder: audio codes of a stream in, 16-bit PCM at 22 050 Hz out, as they come."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import EngineError
from vita_audio.decoding.batching import groups_of, stacked
from vita_audio.decoding.flow_stream import make_mel, window_inputs, window_shapes
from vita_audio.decoding.geometries import Geometries, all_geometries
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.plan import Decode, Position, plan_decode, plan_offline
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import StreamBuffers, ring_frames
from vita_audio.decoding.vocoder_stream import (
    VocoderGeometry,
    Voice,
    chunk_inputs,
    chunk_shapes,
    make_pcm,
)
from vita_audio.engines.arrays import Arrays, DeviceEngine, DeviceFlowEngine, Function, HostArrays, Inputs, Reading
from vita_audio.engines.interface import FlowEngine, Ints, VocoderEngine
from vita_audio.engines.limits import check_condition
from vita_audio.engines.preparing import REMEDY, NoMemory, prepare_batches

log = logging.getLogger(__name__)

Pcm = NDArray[np.int16]


@dataclass(eq=False)
class StreamState:
    """One stream: its codes so far and how far it is decoded. Made by `StreamingDecoder.init`.

    What flow and vocoder carry is in a slot of the decoder's buffers, which is free again when the state is gone.
    """

    noise: StreamNoise
    voice: Voice
    slot: int
    position: Position = field(default_factory=Position)
    codes: list[int] = field(default_factory=list)
    ended: bool = False  # no more codes will come

    @property
    def voiced_frames(self) -> int:
        """Mel frames whose samples have been returned."""
        return self.position.vocoder.voiced_frames


class Decoding:
    """Decodes under way, of the streams of one `StreamingDecoder.start`."""

    def __init__(self, decodes: Sequence[Decode], readings: Sequence[tuple[list[int], Reading]]) -> None:
        self._decodes, self._readings = decodes, readings

    @property
    def ready(self) -> bool:
        """Whether `results` would not wait."""
        return all(reading.ready for _, reading in self._readings)

    def results(self) -> list[Pcm | EngineError]:
        """New samples of each stream (may be empty), or what is wrong with them; waits for the engines."""
        results: list[Pcm | EngineError] = [np.zeros(0, np.int16) for _ in self._decodes]
        for positions, reading in self._readings:
            for position, row in zip(positions, reading.get(), strict=True):
                finite = bool(row[-1])
                results[position] = self._decodes[position].chunk.voiced(row[:-1]) if finite else _not_finite()
        return results


class StreamingDecoder:
    """Decodes any number of streams, each with its own explicit state; not thread safe (one worker drives it).

    What a stream sounds like is a function of its seed and its codes: never of how they were cut into messages, nor
    (but for float rounding in larger batches) of the other streams. N codes give `contract.output_samples(N)` samples.

    Args:
        flow, vocoder: the engines; both take tensors of one device, or both NumPy arrays.
        config: chunk schedule, context and hold-backs.
        streams: that are decoded at the same time; each takes some 1 MB on the engines' device.

    Raises:
        EngineError: the engines do not fit together, or `config` does not fit the flow's block grid.
    """

    def __init__(
        self, flow: FlowEngine, vocoder: VocoderEngine, config: DecoderConfig | None = None, streams: int = 64
    ) -> None:
        self.flow, self.vocoder = flow, vocoder
        self.config = config or DecoderConfig()
        self.config.check_grid(flow.block_tokens)
        if flow.mel_channels != vocoder.mel_channels:
            raise EngineError(
                f"flow makes {flow.mel_channels} mel channels but the vocoder takes {vocoder.mel_channels}: "
                "build both engines from one checkpoint"
            )
        self._arrays: Arrays = HostArrays()
        # On a device an engine cannot look at its inputs: codes that it does not know are refused here.
        self._vocab_size: int | None = None
        if isinstance(flow, DeviceFlowEngine) and isinstance(vocoder, DeviceEngine):
            self._arrays, self._vocab_size = flow.arrays, flow.vocab_size
        self._buffers = self._new_buffers(streams, ring_frames(self.config, flow.block_tokens))
        self._make_mel, self._make_pcm = (self._arrays.program(step) for step in self._steps(self._buffers))

    def init(self, seed: int) -> StreamState:
        """The state of a new stream; `seed` fixes its noise.

        Raises:
            EngineError: as many streams are decoded as there is room for.
        """
        noise = StreamNoise(seed)
        state = StreamState(noise, Voice.of(self.vocoder, noise), self._buffers.take())
        weakref.finalize(state, self._buffers.give_back, state.slot)
        return state

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

    def start(self, states: Sequence[StreamState]) -> Decoding:
        """Begin the one decode that is due for each of these streams, batched. On a GPU it goes on after the return.

        If this raises, no state has changed: the call may be repeated with fewer streams.

        Raises:
            EngineError: nothing is due for a stream, or it has codes that the flow does not know.
        """
        decodes = []
        for state in states:
            decode = self._due(state)
            if decode is None:
                raise EngineError("no decode is due for the stream: ask `due` first")
            decodes.append(decode)
        due = list(zip(states, decodes, strict=True))
        windows = [
            self._windows(self._buffers, [due[i] for i in group])
            for frames, group in groups_of(decodes, lambda decode: decode.span and decode.span.frames).items()
            if frames is not None
        ]
        for window in windows:  # all codes were looked at: from here on only an engine can fail
            self._make_mel(window)
        readings = []
        for geometry, group in groups_of(decodes, lambda decode: decode.chunk.geometry).items():
            if geometry is not None:
                chunks = self._chunks(self._buffers, [due[i] for i in group], geometry)
                readings.append((group, self._make_pcm(chunks)))
        for state, decode in zip(states, decodes, strict=True):
            state.position = decode.after
        return Decoding(decodes, readings)

    def step(self, states: Sequence[StreamState]) -> list[Pcm]:
        """Run the one decode that is due for each of these streams to its end; new samples of each (may be empty).

        Raises:
            EngineError: as `start`, or a wave is not finite.
        """
        return _checked(self.start(states).results())

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
        decode = plan_offline(self.config, len(codes))
        noise = StreamNoise(seed)
        state = StreamState(noise, Voice.of(self.vocoder, noise), slot=1, codes=[int(code) for code in codes])
        assert decode.span is not None
        assert decode.chunk.geometry is not None
        buffers = self._new_buffers(streams=1, frames=decode.span.frames)
        make_mel, make_pcm = (self._arrays.program(step) for step in self._steps(buffers))
        make_mel(self._windows(buffers, [(state, decode)]))
        reading = make_pcm(self._chunks(buffers, [(state, decode)], decode.chunk.geometry))
        return _checked(Decoding([decode], [([0], reading)]).results())[0]

    def warm_up(self, max_batch: int = 1, first_chunk_only: bool = False) -> None:
        """Prepare every geometry that running streams have, in batches of 1, 2, 4, ... to the first that holds
        `max_batch`, and one stream's every end: so that no client waits for what an engine does once for a shape.

        Args:
            first_chunk_only: for engines that do nothing once for a shape: a stream's first decode alone.

        Raises:
            NoMemory: the engines' device has none for one running stream. Where it has none for batches or ends, those
                run in smaller batches or kernel by kernel, which is logged.
        """
        geometries = all_geometries(self.config, self.flow.block_tokens)
        running, ends = geometries.running, geometries.ends
        if first_chunk_only:
            running, ends = Geometries(running.windows[:1], running.chunks[:1]), Geometries([], [])
        prepare_batches("audio decoder", max_batch, partial(self._prepare, running))
        if self._vocab_size is not None:
            try:
                self._prepare(ends, 1)
            except NoMemory as error:
                log.warning("audio decoder: %s: some ends of streams run kernel by kernel; %s", error, REMEDY)

    def _prepare(self, geometries: Geometries, batch: int) -> None:
        for tokens, frames in sorted(geometries.windows, reverse=True):
            row = window_shapes(self._buffers, tokens, frames, self.config, self.flow.mel_channels)
            self._make_mel.prepare(stacked([row] * batch))
        for geometry in sorted(geometries.chunks, key=lambda chunk: -chunk.wave):
            row = chunk_shapes(geometry, self.vocoder.harmonics)
            self._make_pcm.prepare({**stacked([row] * batch), "f0_frames": _f0_frames(geometry)})

    def _due(self, state: StreamState) -> Decode | None:
        return plan_decode(self.config, self.flow.block_tokens, state.position, len(state.codes), state.ended)

    def _new_buffers(self, streams: int, frames: int) -> StreamBuffers:
        return StreamBuffers(self._arrays, self.config, streams, frames, self.flow.mel_channels)

    def _steps(self, buffers: StreamBuffers) -> tuple[Function, Function]:
        """The two functions that a decode is."""
        arrays = self._arrays
        return (
            partial(make_mel, arrays, self.flow, buffers, self.config.flow_steps),
            partial(make_pcm, arrays, self.vocoder, buffers),
        )

    def _windows(self, buffers: StreamBuffers, due: Sequence[tuple[StreamState, Decode]]) -> Inputs:
        """Inputs of the flow, of streams whose windows have equal geometry."""
        rows = []
        for state, decode in due:
            assert decode.span is not None
            rows.append(
                window_inputs(
                    buffers, state.slot, state.position.flow, decode.span, state.codes, state.noise, self.config,
                    self.flow.mel_channels,
                )
            )  # fmt: skip
        inputs = stacked(rows)
        if self._vocab_size is not None:
            check_condition(inputs["tokens"], inputs["frame_token"], self._vocab_size)
        return inputs

    def _chunks(
        self, buffers: StreamBuffers, due: Sequence[tuple[StreamState, Decode]], geometry: VocoderGeometry
    ) -> Inputs:
        """Inputs of the vocoder, of streams whose chunks have this geometry."""
        rows = [chunk_inputs(buffers, state.slot, decode.chunk, state.noise, state.voice) for state, decode in due]
        return {**stacked(rows), "f0_frames": _f0_frames(geometry)}

    def _drain(self, state: StreamState) -> Pcm:
        parts = [np.zeros(0, np.int16)]
        while self.due(state) is not None:
            parts += self.step([state])
        return np.concatenate(parts)


def _f0_frames(geometry: VocoderGeometry) -> Ints:
    """Which of the f0 predictor's frames get a source."""
    return np.arange(geometry.before, geometry.before + geometry.source)


def _not_finite() -> EngineError:
    return EngineError("the vocoder made samples that are not finite: the mel or the weights are broken")


def _checked(results: Sequence[Pcm | EngineError]) -> list[Pcm]:
    """Raises the first error."""
    made = []
    for result in results:
        if isinstance(result, EngineError):
            raise result
        made.append(result)
    return made
