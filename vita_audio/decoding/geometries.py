"""The closed set of shapes that streams ask the engines for, found by planning streams: for graphs and profiles."""

from __future__ import annotations

from dataclasses import dataclass

from vita_audio.decoding.plan import Decode, Position, plan_decode
from vita_audio.decoding.schedule import DecoderConfig, next_decode
from vita_audio.decoding.vocoder_stream import VocoderGeometry

#: Frames and tokens meet again after this many tokens (441 frames): places in a stream repeat from there.
FRAME_PERIOD_TOKENS = 64


@dataclass(slots=True)
class Geometries:
    """(tokens, frames) of flow windows, and sizes of vocoder chunks, each once, in the order of a stream."""

    windows: list[tuple[int, int]]
    chunks: list[VocoderGeometry]

    def note(self, decode: Decode) -> None:
        if decode.span is not None and (window := (decode.span.tokens, decode.span.frames)) not in self.windows:
            self.windows.append(window)
        if (geometry := decode.chunk.geometry) is not None and geometry not in self.chunks:
            self.chunks.append(geometry)


@dataclass(frozen=True, slots=True)
class AllGeometries:
    """Those of running streams, and those that only ends of streams have."""

    running: Geometries
    ends: Geometries


def all_geometries(config: DecoderConfig, block_tokens: int) -> AllGeometries:
    """Plan a stream until its places repeat, and an end after every one of its tokens."""
    running, every = Geometries([], []), Geometries([], [])
    position, decoded = Position(), 0
    steady = config.context_tokens + sum(config.chunk_tokens) + config.chunk_tokens[-1]
    period = FRAME_PERIOD_TOKENS * config.chunk_tokens[-1]
    while decoded < steady + period:
        due = next_decode(config, decoded)
        for tokens in range(decoded, due):
            end = plan_decode(config, block_tokens, position, tokens, ended=True)
            if end is not None:
                every.note(end)
        decode = plan_decode(config, block_tokens, position, due, ended=False)
        assert decode is not None
        running.note(decode)
        position, decoded = decode.after, due
    ends = Geometries(
        [window for window in every.windows if window not in running.windows],
        [chunk for chunk in every.chunks if chunk not in running.chunks],
    )
    return AllGeometries(running, ends)
