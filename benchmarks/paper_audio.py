"""Measures the audio side of the paper's Table E7: speech tokenizer, and decoder with 1, 4 and 10 flow steps.

Released sizes (or tiny ones), random weights, float32, and on a GPU with TF32 matrix products as well; eager, and as
one CUDA graph for each geometry where there is a GPU. Beside them the streaming decoder as it is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_device import milliseconds
from benchmarks.paper_setting import CHUNK_TOKENS, SPEECH_TOKENS
from vita_audio.checkpoint.configs import FlowConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.checkpoint.random_weights.audio import flow_weights, vocoder_weights
from vita_audio.contract.rates import mel_frames
from vita_audio.decoding.decoder import Pcm, StreamingDecoder
from vita_audio.engines.audio_precision import DECODER_PRECISIONS, FLOAT32
from vita_audio.engines.interface import FlowEngine, VocoderEngine
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder, tensor_float_32
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.models.flow import Flow, offline_frame_map, time_grid
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder

FLOW_STEPS = (1, 4, 10)

TINY = (
    SpeechTokenizerConfig(64, 2, 128, 80, 1500, 4, 2, 256),
    FlowConfig(256, 64, 80, 64, 64, 2, 128, 1, channels=(32, 32), attention_head_dim=16, n_blocks=1, num_mid_blocks=1),
    VocoderConfig(base_channels=32, f0_channels=32),
)
RELEASED = (SpeechTokenizerConfig(), FlowConfig(), VocoderConfig())

Work = Callable[[], Tensor]


#: As it is served, and with TF32 matrix products and convolutions (a GPU's alone).
PRECISIONS = ("float32", "TF32")


def audio_rows(device: torch.device, tiny: bool, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each stage and precision: its eager time and, on a GPU, its time as a CUDA graph (None elsewhere)."""
    torch.manual_seed(0)
    speech, flow, vocoder = TINY if tiny else RELEASED
    with torch.inference_mode():
        stages = {"encoder": _encoder(speech, device)}
        stages |= {f"decoder, {steps} step(s)": _decoder(flow, vocoder, steps, device) for steps in FLOW_STEPS}
        for tf32 in (False, True) if device.type == "cuda" else (False,):
            for name, work in stages.items():
                with tensor_float_32(tf32):
                    eager = milliseconds(work, device, repeats)
                    graph = milliseconds(_captured(work, device), device, repeats) if device.type == "cuda" else None
                yield {"stage": name, "precision": PRECISIONS[tf32], "eager_ms": eager, "graph_ms": graph}


def streaming_rows(device: torch.device, tiny: bool, repeats: int, streams: int) -> Iterator[dict[str, Any]]:
    """The streaming decoder over each kind of engine, with equal weights: first chunk of one stream, a later, full one
    of one stream and of several in a batch, and the end of a stream (its shape new, then known).

    Median ms of a decode; "engine_ms" of it in engine calls, the rest is the host's arithmetic; "audio_ms": sound in
    it; "difference": of the samples to those of the first kind of engine at most, as a share of full scale.
    """
    _, flow_config, vocoder_config = TINY if tiny else RELEASED
    flow, vocoder = flow_weights(flow_config, 0, device), vocoder_weights(vocoder_config, 0, device)
    with device:  # random values are drawn where they are needed: on a CPU that takes seconds
        engines: dict[str, tuple[FlowEngine, VocoderEngine]] = {
            "eager, float32": (TorchFlow(flow_config, flow, device), TorchVocoder(vocoder_config, vocoder, device))
        }
        for precision in DECODER_PRECISIONS if device.type == "cuda" else (FLOAT32,):
            engines[f"graphs, {precision}"] = (
                TorchCudaFlow(flow_config, flow, device, precision),
                TorchCudaVocoder(vocoder_config, vocoder, device, precision),
            )
    expected: dict[tuple[str, int], Pcm] = {}
    for kind, pair in engines.items():
        decoder, watch = StreamingDecoder(*pair), _Stopwatch()
        watch.time(pair[0], "condition", "solve")
        watch.time(pair[1], "f0", "synthesize")
        first, last = decoder.config.first_chunk_tokens, decoder.config.chunk_tokens[-1]
        late = sum(decoder.config.chunk_tokens) + last
        for name, before, more, count in (
            ("first chunk", 0, first, 1),
            ("later chunk", late, last, 1),
            ("later chunk", late, last, streams),
            ("end, new shape", late, last // 5, 1),
            ("end", late, last // 5, 1),
        ):
            due = [decoder.init(seed) for seed in range(count)]
            for state in due:
                decoder.push(state, range(before))
                decoder.feed(state, range(more), end=name.startswith("end"))
            new = name == "end, new shape"
            warm_ups = 0 if new or repeats == 1 else 2
            times, spent = [], []
            for turn in range(warm_ups + (1 if new else repeats)):
                states, watch.seconds, start = deepcopy(due), 0.0, perf_counter()
                made = decoder.step(states)[0]
                if turn >= warm_ups:
                    times.append((perf_counter() - start) * 1e3)
                    spent.append(watch.seconds * 1e3)
            wanted = expected.setdefault((name, count), made).astype(np.int32)
            yield {
                "stage": name, "engines": kind, "streams": count, "ms": median(times), "engine_ms": median(spent),
                "audio_ms": len(made) / 22.05, "difference": float(np.abs(made - wanted).max(initial=0)) / 32767,
            }  # fmt: skip


class _Stopwatch:
    """Adds up the seconds that calls of some methods take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, owner: object, *names: str) -> None:
        """From now on, calls of these methods of `owner` count."""
        for name in names:
            setattr(owner, name, partial(self._run, getattr(owner, name)))

    def _run(self, call: Callable[..., Any], *arguments: object) -> Any:
        start = perf_counter()
        try:
            return call(*arguments)
        finally:
            self.seconds += perf_counter() - start


def _encoder(config: SpeechTokenizerConfig, device: torch.device) -> Work:
    """Features of `SPEECH_TOKENS` tokens of speech -> ids."""
    with device:
        model = SpeechTokenizer(config).eval().to(device)
    frames = SPEECH_TOKENS * config.frames_per_token
    features = torch.randn(1, config.num_mel_bins, frames, device=device)
    valid = torch.tensor([frames], device=device)
    return lambda: model(features, valid)


def _decoder(flow_config: FlowConfig, vocoder_config: VocoderConfig, steps: int, device: torch.device) -> Work:
    """The first chunk: audio tokens -> mel -> wave, one shot, nothing held back."""
    with device:
        flow, vocoder = Flow(flow_config).eval().to(device), Vocoder(vocoder_config).eval().to(device)
    frames, mels = mel_frames(CHUNK_TOKENS), flow_config.output_size
    tokens = torch.randint(0, flow_config.vocab_size, (1, CHUNK_TOKENS), device=device)
    frame_token = offline_frame_map(CHUNK_TOKENS, frames).to(device)
    noise, cond = torch.randn(1, mels, frames, device=device), torch.zeros(1, mels, frames, device=device)
    times = [(torch.tensor([start], device=device), stop - start) for start, stop in pairwise(time_grid(steps))]
    harmonics = vocoder_config.nb_harmonics + 1
    phases = torch.zeros(harmonics, device=device)
    hiss = torch.randn(1, harmonics, frames * vocoder_config.samples_per_frame, device=device)

    def decode() -> Tensor:
        mu, x = flow.condition(tokens, frame_token), noise
        for start, length in times:  # `Flow.sample` with the times already on the device, as a capture needs them
            x = x + length * flow.velocity(x, mu, cond, start)
        return vocoder(x, vocoder.source(vocoder.f0(x), phases, hiss))

    return decode


def _captured(work: Work, device: torch.device) -> Callable[[], None]:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
