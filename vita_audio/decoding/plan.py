"""What a stream's next decode does, in numbers of tokens and frames alone: the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from vita_audio.contract.rates import mel_frames
from vita_audio.decoding.flow_stream import FlowState, WindowSpan, advance, release_held, window_span
from vita_audio.decoding.schedule import DecoderConfig, next_decode
from vita_audio.decoding.vocoder_stream import VocoderChunk, VocoderState, plan_chunk


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream is decoded."""

    flow: FlowState = field(default_factory=FlowState)
    vocoder: VocoderState = field(default_factory=VocoderState)


@dataclass(frozen=True, slots=True)
class Decode:
    """A decode that can run now.

    Attributes:
        span: its flow window; None: the held frames are voiced as they are.
        chunk: of the vocoder.
        after: where the stream is afterwards.
    """

    span: WindowSpan | None
    chunk: VocoderChunk
    after: Position


def plan_decode(
    config: DecoderConfig, block_tokens: int, position: Position, tokens: int, ended: bool
) -> Decode | None:
    """The decode that is due for a stream of so many tokens, None if none is; `ended`: no more will come."""
    flow = position.flow
    stop = next_decode(config, flow.decoded_tokens)
    final = tokens < stop
    if final:
        if not ended or position.vocoder.voiced_frames == mel_frames(tokens):
            return None
        stop = tokens  # the flush
    if stop > flow.decoded_tokens:
        span = window_span(flow.final_frames, stop, config.context_tokens, block_tokens)
        after = advance(flow, span, config, final)
    else:  # frames that were made at this very token count are not made again
        span, after = None, release_held(flow)
    return _decode(config, position, span, after, final)


def plan_offline(config: DecoderConfig, tokens: int) -> Decode:
    """All tokens of a stream in one flow window and one chunk."""
    span = WindowSpan(0, tokens, 0, mel_frames(tokens))
    return _decode(config, Position(), span, advance(FlowState(), span, config, final=True), final=True)


def _decode(config: DecoderConfig, position: Position, span: WindowSpan | None, flow: FlowState, final: bool) -> Decode:
    new = flow.final_frames - position.flow.final_frames
    chunk = plan_chunk(position.vocoder, flow.final_frames, new, config, final)
    return Decode(span, chunk, Position(flow, chunk.advance()))
