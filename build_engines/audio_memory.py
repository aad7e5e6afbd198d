"""Arithmetic of the audio networks of a GPU build: their weights, and memory beside them (`plan.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import nn

from build_engines.sizes import Sizes
from build_engines.tensorrt_audio.profiles import Geometries, decoder_geometries
from vita_audio.decoding.geometries import all_geometries
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import ring_bytes, ring_frames
from vita_audio.engines.tensorrt_audio.plan import batch_buckets
from vita_audio.engines.torch_cuda.memory import NODE_BYTES
from vita_audio.engines.torch_cuda.sensevoice import prepared_slots
from vita_audio.engines.torch_cuda.speech_tokenizer import MOST_PIECES, block_sizes, state_bytes
from vita_audio.models.flow import Flow
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder
from vita_audio.sensevoice_features import most_slots

#: Kernels of the decoder's two functions, of 4 flow steps, and of a layer of the speech tokenizer or of SenseVoice
#: (counted by dispatch: `tests/engines/torch_cuda/test_dispatch.py`).
_MEL_NODES, _PCM_NODES, _SPEECH_LAYER_NODES = 172 + 4 * 659, 13 + 201 + 90, 12

Geometry = Mapping[str, int]


def captured_bytes(sizes: Sizes, max_batch: int) -> int:
    """Inputs and outputs of every captured audio call: running geometries, each at every batch bucket."""
    mels = sizes.flow.output_size
    made = decoder_geometries(DecoderConfig(), sizes.flow.block_size)

    def condition(batch: int, g: Geometry) -> int:  # ids and frame map are 8 bytes, the rest float32
        return 8 * batch * (g["tokens"] + g["frames"]) + 4 * batch * mels * g["frames"]

    def velocity(batch: int, g: Geometry) -> int:  # x, mu, cond in, v out, and the time
        return 4 * (4 * batch * mels * g["frames"] + 1)

    def f0(batch: int, g: Geometry) -> int:
        return 4 * batch * (mels + 1) * g["frames"]

    def vocoder(batch: int, g: Geometry) -> int:  # mel and source in, wave out
        return 4 * batch * (mels * g["frames"] + 2 * g["samples"])

    calls: list[tuple[Geometries, Callable[[int, Geometry], int]]] = [
        (made.condition, condition),
        (made.velocity, velocity),
        (made.f0, f0),
        (made.vocoder, vocoder),
    ]
    return sum(
        size(batch, geometry)
        for geometries, size in calls
        for geometry in geometries.running
        for batch in batch_buckets(max_batch)
    )


def audio_buffers(sizes: Sizes, streams: int, max_batch: int, context: int) -> dict[str, int]:
    """Device memory of torch_cuda's audio engines beside their weights: state of streams and of speech, and graphs.

    Args:
        streams: of the language model.
        context: tokens of a stream, which bound a clip of SenseVoice.
    """
    made = all_geometries(DecoderConfig(), sizes.flow.block_size)
    batches = len(batch_buckets(max_batch))
    windows = batches * len(made.running.windows) + len(made.ends.windows)
    chunks = batches * len(made.running.chunks) + len(made.ends.chunks)
    nodes = windows * _MEL_NODES + chunks * _PCM_NODES
    buffers = {"decoder streams": decoder_streams_bytes(sizes, streams)}
    if clips := sizes.sensevoice:  # which keeps nothing between clips
        counts = prepared_slots(context)
        nodes += len(counts) * (clips.num_blocks + clips.tp_blocks) * _SPEECH_LAYER_NODES
        buffers["SenseVoice clips"] = sum(4 * count * clips.input_size for count in counts)
        buffers |= encoder_bytes(sizes, counts[-1])
    else:
        speech = sizes.speech_tokenizer
        nodes += len(batch_buckets(MOST_PIECES)) * block_sizes(speech).most_blocks * speech.layers * _SPEECH_LAYER_NODES
        buffers["speech tokenizer states"] = state_bytes(speech)
    return buffers | {"audio graphs": nodes * NODE_BYTES}


def decoder_streams_bytes(sizes: Sizes, streams: int) -> int:
    """Of the decoder on a GPU: room for twice `streams` of the language model, and those that end, at least."""
    return decoder_state_bytes(sizes) * 32 + decoder_bytes_per_stream(sizes) * streams


def decoder_bytes_per_stream(sizes: Sizes) -> int:
    """What one more stream of the language model adds there: a quarter more may end, and twice as many have room."""
    return decoder_state_bytes(sizes) * 5 // 2


def decoder_state_bytes(sizes: Sizes) -> int:
    """What one stream of the audio decoder carries from chunk to chunk."""
    config = DecoderConfig()
    return ring_bytes(config, ring_frames(config, sizes.flow.block_size), sizes.flow.output_size)


def audio_weights(sizes: Sizes) -> dict[str, int]:
    """float32; TensorRT keeps the flow's products in half of it."""
    return dict(_audio_weights(sizes))


@lru_cache(maxsize=8)  # a build asks several times, for each of its stages
def _audio_weights(sizes: Sizes) -> dict[str, int]:
    parts: dict[str, tuple[type[nn.Module], object]] = {
        "flow": (Flow, sizes.flow),
        "vocoder": (Vocoder, sizes.vocoder),
    }
    if sizes.sensevoice is None:
        parts["speech tokenizer"] = SpeechTokenizer, sizes.speech_tokenizer
    else:
        parts["SenseVoice"] = SenseVoice, sizes.sensevoice
    with torch.device("meta"):
        return {
            name: sum(4 * tensor.numel() for tensor in module(config).state_dict().values())
            for name, (module, config) in parts.items()
        }


def longest_clip(context: int) -> int:
    """Embeddings of the longest clip that a request of `context` tokens may have."""
    return min(context, most_slots())


def encoder_bytes(sizes: Sizes, rows: int) -> dict[str, int]:
    """Activations of SenseVoice for a clip of so many embeddings; none for a speech tokenizer.

    float32: the input and output of an attention layer, its three projections and its scores, the inner rows of an MLP,
    and the rows of embeddings, before and after the projector's GELU.
    """
    config = sizes.sensevoice
    if config is None:
        return {}
    wide = max(config.input_size, config.output_size)
    row = 2 * wide + 3 * config.output_size + config.linear_units + 3 * config.embedding_size
    return {"SenseVoice activations": 4 * rows * (row + config.attention_heads * rows)}
