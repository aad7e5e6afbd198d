"""Measures the audio side of the paper's Table E7 with the engines that serve, beside the reference run eagerly.

Released sizes (or tiny ones), random weights. The streaming decoder is called as the server calls it: everything
between a chunk's tokens and its samples counts, the host's part and the copies included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_device import milliseconds
from benchmarks.paper_setting import CHUNK_TOKENS, SPEECH_TOKENS
from vita_audio.checkpoint.configs import FlowConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.checkpoint.random_weights.audio import flow_weights, speech_tokenizer_weights, vocoder_weights
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.decoder import Pcm, StreamingDecoder, StreamState
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.audio_precision import DECODER_PRECISIONS, FLOAT32, SPEECH_PRECISIONS, TF32
from vita_audio.engines.interface import Floats, FlowEngine, VocoderEngine
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.kernels.names import AUDIO_NAMES
from vita_audio.engines.torch_cuda.speech_tokenizer import TorchCudaSpeechTokenizer

#: The paper decodes with 1 and 10 steps; a server takes 4.
FLOW_STEPS = (1, 4, 10)
EAGER = "eager, float32"

TINY = (
    SpeechTokenizerConfig(64, 2, 128, 80, 1500, 4, 2, 256),
    FlowConfig(256, 64, 80, 64, 64, 2, 128, 1, channels=(32, 32), attention_head_dim=16, n_blocks=1, num_mid_blocks=1),
    VocoderConfig(base_channels=32, f0_channels=32),
)
RELEASED = (SpeechTokenizerConfig(), FlowConfig(), VocoderConfig())

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """Engines of the decoder; `whole`: all rows are measured, else a first chunk alone."""

    name: str
    flow: FlowEngine
    vocoder: VocoderEngine
    whole: bool


def audio_rows(device: torch.device, tiny: bool, repeats: int, streams: int) -> Iterator[Row]:
    """The speech tokenizer, and the streaming decoder over each kind of engine, with equal weights: first chunk of one
    stream, a later, full one of one stream and of several in a batch, the end of a stream, and the paper's one chunk
    with each number of flow steps. Eager engines come first, then those that serve, with what their warm-up takes.

    Median ms of a decode, "host_ms" of it until the device has been given all of it; "audio_ms": sound in it;
    "difference": of the samples to those of the eager engines at most, as a share of full scale.
    """
    speech, flow, vocoder = TINY if tiny else RELEASED
    with device:  # what is random is drawn where it is needed: on a CPU that takes seconds
        yield from _encoder_rows(speech, device, repeats)
        expected: dict[tuple[str, int], Pcm] = {}
        for kind in _kinds(flow, vocoder, device):
            few = repeats if device.type == "cuda" and kind.name != EAGER else max(1, repeats // 4)
            yield from _decoder_rows(kind, few, streams, expected)


def _kinds(flow_config: FlowConfig, vocoder_config: VocoderConfig, device: torch.device) -> Iterator[Kind]:
    flow, vocoder = flow_weights(flow_config, 0, device), vocoder_weights(vocoder_config, 0, device)
    yield Kind(EAGER, TorchFlow(flow_config, flow, device), TorchVocoder(vocoder_config, vocoder, device), True)
    served = TF32 if device.type == "cuda" else FLOAT32
    others = [p for p in DECODER_PRECISIONS if p != served] if device.type == "cuda" else []
    kinds: list[tuple[str, tuple[str, ...]]] = [(each, ()) for each in (served, *others)]
    if others:
        kinds.append((served, AUDIO_NAMES))
    for precision, off in kinds:
        options = device, precision, frozenset(off)
        yield Kind(
            f"graphs, {precision}" + ", kernels off" * bool(off),
            TorchCudaFlow(flow_config, flow, *options),
            TorchCudaVocoder(vocoder_config, vocoder, *options),
            precision == served and not off,
        )


def _decoder_rows(kind: Kind, repeats: int, streams: int, expected: dict[tuple[str, int], Pcm]) -> Iterator[Row]:
    decoder = StreamingDecoder(kind.flow, kind.vocoder, streams=2 * streams)  # those of the row before as well
    start = perf_counter()
    decoder.warm_up(streams if kind.whole else 1, first_chunk_only=not kind.whole or kind.name == EAGER)
    whole = kind.whole and kind.name != EAGER
    if whole:
        yield {
            "stage": f"warm-up, batches to {streams}", "engines": kind.name, "streams": streams,
            "ms": (perf_counter() - start) * 1e3,
        }  # fmt: skip
    first, last = decoder.config.first_chunk_tokens, decoder.config.chunk_tokens[-1]
    late = sum(decoder.config.chunk_tokens) + last
    rows = [("first chunk", 0, first, 1), ("later chunk", late, last, 1), ("later chunk", late, last, streams),
            ("end", late, last // 5, 1)]  # fmt: skip
    for name, before, more, count in rows if kind.whole else rows[:1]:
        due = [decoder.init(seed) for seed in range(count)]
        for state in due:
            decoder.push(state, range(before))
            decoder.feed(state, range(more), end=name == "end")
        yield _timed(name, kind, decoder, due, repeats, expected)
    for steps in FLOW_STEPS if kind.whole else ():
        decoder = StreamingDecoder(kind.flow, kind.vocoder, DecoderConfig(flow_steps=steps), streams=1)
        decoder.warm_up(first_chunk_only=True)
        state = decoder.init(0)
        decoder.feed(state, range(CHUNK_TOKENS), end=decoder.config.first_chunk_tokens != CHUNK_TOKENS)
        yield _timed(f"decoder, {steps} step(s)", kind, decoder, [state], repeats, expected)


def _timed(
    name: str,
    kind: Kind,
    decoder: StreamingDecoder,
    due: Sequence[StreamState],
    repeats: int,
    expected: dict[tuple[str, int], Pcm],
) -> Row:
    """The decode that is due, again and again: it writes the same values to the same places."""
    before = [state.position for state in due]
    took, host = [], []
    for turn in range(repeats + min(2, repeats)):
        for state, position in zip(due, before, strict=True):
            state.position = position
        start = perf_counter()
        decoding = decoder.start(due)
        given = perf_counter()
        made = decoding.results()[0]
        if turn >= min(2, repeats):
            took.append((perf_counter() - start) * 1e3)
            host.append((given - start) * 1e3)
    if isinstance(made, EngineError):
        raise made
    wanted = expected.setdefault((name, len(due)), made).astype(np.int32)
    return {
        "stage": name, "engines": kind.name, "streams": len(due), "ms": median(took), "host_ms": median(host),
        "audio_ms": len(made) / 22.05, "difference": float(np.abs(made - wanted).max(initial=0)) / 32767,
    }  # fmt: skip


def _encoder_rows(config: SpeechTokenizerConfig, device: torch.device, repeats: int) -> Iterator[Row]:
    """Features of `SPEECH_TOKENS` tokens of speech -> ids, each time of other speech, so that no block is kept."""
    tensors = speech_tokenizer_weights(config, 0, device)
    frames = SPEECH_TOKENS * config.frames_per_token
    draw = np.random.default_rng(0)

    def other() -> Floats:
        return draw.standard_normal((config.num_mel_bins, frames)).astype(np.float32)

    for precision in SPEECH_PRECISIONS if device.type == "cuda" else (FLOAT32,):
        engine = TorchCudaSpeechTokenizer(config, tensors, device, precision)
        start = perf_counter()
        engine.prepare()
        yield {"stage": "encoder, warm-up", "engines": precision, "streams": 1, "ms": (perf_counter() - start) * 1e3}
        took = milliseconds(lambda engine=engine: engine.tokens(other(), frames), device, repeats)  # type: ignore[misc]
        yield {"stage": "encoder", "engines": precision, "streams": 1, "ms": took}
