"""Speech tokenizer checkpoint -> speech_tokenizer.onnx (log-mel features to audio token ids).

Attention looks at its own block and at earlier ones, so a piece can be run block by block with the keys and values of
the blocks before: speech that goes on is then not run again (`vita_audio.engines.onnxruntime.speech_tokenizer`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from build_engines.onnxruntime.graph import END, FLOAT, FUSED, INT64, Graph, weights_of
from vita_audio.checkpoint.configs import SPEECH_TOKENIZER
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.models.speech_tokenizer import SpeechTokenizer

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

SPEECH_TOKENIZER_FILE = "speech_tokenizer.onnx"


#: Frames before a run that its convolutions see, and the rows that come of them.
CONTEXT_FRAMES = 4


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """A stage of a build: the graph that goes on from earlier blocks, for ONNX Runtime."""
    export_speech_tokenizer(_model(build), folder)
    return {}


def run_whole(build: Build, folder: Path, needed: Needed) -> Facts:
    """A stage of a build: the graph of whole pieces, for TensorRT."""
    export_speech_tokenizer(_model(build), folder, whole=True)
    return {}


def _model(build: Build) -> SpeechTokenizer:
    config, tensors = load_speech_tokenizer(build.checkpoint / SPEECH_TOKENIZER)
    model = SpeechTokenizer(config).eval()
    model.load_state_dict(tensors)
    return model


def export_speech_tokenizer(model: SpeechTokenizer, folder: Path, whole: bool = False) -> None:
    """Write the graph; batch and frames (even, at most 2 x max_source_positions) are free.

    speech_tokenizer.onnx: features [B, mels, C + F], valid_frames int64 [B] of F -> ids [B, ceil(F / frames_per_token)]
    int64, and, unless `whole`, the keys and values of each layer. Then `context_rows` [1] is C / 2, of the C frames
    before (`CONTEXT_FRAMES`, 0 at the start), and past_key_i, past_value_i [B, P, width] are of the positions before.
    """
    config, weights, graph = model.config, weights_of(model.state_dict()), Graph("speech_tokenizer")
    width, mels = config.d_model, config.num_mel_bins
    features = graph.input("features", FLOAT, ["batch", mels, "frames"])
    valid_frames = graph.input("valid_frames", INT64, ["batch"])
    x = graph.reshape(features, 0, mels, 1, -1)
    for key, stride in (("conv1", 1), ("conv2", 2)):
        x = graph.conv(x, key, weights[key + ".weight"], weights[key + ".bias"], (2, 0), stride)  # causal: left pad
        x = graph.op("Gelu", x)
    rows = graph.to_rows(x, width)  # [B, positions, width], 50 Hz
    past: list[tuple[str, str]] = []
    start = graph.ints(0)
    if not whole:
        rows = graph.slice(rows, graph.input("context_rows", INT64, [1]), graph.ints(END), 1)
        past = [_past(graph, index, width) for index in range(config.layers)]
        start = graph.op("Shape", past[0][0], start=1, end=2)
    length = graph.op("Shape", rows, start=1, end=2)
    table = graph.weight("embed_positions.weight", weights["embed_positions.weight"])
    rows = graph.op("Add", rows, graph.slice(table, start, graph.op("Add", start, length), 0))
    bias = _attention_bias(graph, length, valid_frames, config.quantize_causal_block_size)
    if not whole:  # everything before is visible
        lengths = graph.op("Concat", graph.op("Shape", bias, start=0, end=3), start, axis=0)
        seen = graph.op("Expand", graph.number(0.0), lengths)
        bias = graph.op("Concat", seen, bias, axis=3)
    to_heads = graph.op("Shape", rows)
    x = graph.reshape(rows, -1, width)
    for index in range(config.layers):
        heads, key = config.encoder_attention_heads, f"layers.{index}."
        x, present = _layer(graph, x, to_heads, bias, key, weights, heads, past[index] if past else None)
        for name, value in zip(("key", "value"), present, strict=True):
            if not whole:
                graph.output(f"{name}_{index}", value, FLOAT, ["batch", "positions", width])
    ids = _quantize(graph, graph.op("Reshape", x, to_heads), length, config.pooling_kernel_size, weights)
    graph.output("ids", ids, INT64, ["batch", "tokens"])
    metadata = {
        "num_mel_bins": str(mels),
        "max_frames": str(2 * config.max_source_positions),
        "frames_per_token": str(config.frames_per_token),
        "context_frames": str(CONTEXT_FRAMES),
        "block_positions": str(config.quantize_causal_block_size),
        "layers": str(config.layers),
        "width": str(width),
    }
    graph.save(Path(folder) / SPEECH_TOKENIZER_FILE, metadata)


def _attention_bias(graph: Graph, length: str, valid_frames: str, block: int) -> str:
    """[B, 1, positions, positions]: 0 where a position (row) may look, the lowest float elsewhere."""
    index = graph.op("Range", graph.integer(0), graph.op("Squeeze", length), graph.integer(1))
    owner = graph.op("Div", index, graph.integer(block))  # block of each position
    later = graph.op(
        "Greater", graph.op("Unsqueeze", owner, graph.ints(0)), graph.op("Unsqueeze", owner, graph.ints(1))
    )
    positions = graph.op("Div", graph.op("Add", valid_frames, graph.integer(1)), graph.integer(2))  # that hold speech
    padding = graph.op("GreaterOrEqual", index, graph.op("Unsqueeze", positions, graph.ints(1, 2, 3)))  # [B, 1, 1, T]
    lowest = graph.number(float(np.finfo(np.float32).min))
    return graph.op("Where", graph.op("Or", later, padding), lowest, graph.number(0.0))


def _past(graph: Graph, layer: int, width: int) -> tuple[str, str]:
    """The inputs for keys and values of the positions before."""
    key, value = (graph.input(f"past_{name}_{layer}", FLOAT, ["batch", "past", width]) for name in ("key", "value"))
    return key, value


def _layer(
    graph: Graph,
    x: str,
    to_heads: str,
    bias: str,
    key: str,
    weights: dict[str, NDArray],
    heads: int,
    past: tuple[str, str] | None,
) -> tuple[str, tuple[str, str]]:
    """One encoder layer over rows [B * positions, width]; keys and values of these rows come with its result."""

    def linear(value: str, name: str) -> str:
        return graph.gemm(value, key + name, weights[key + name + ".weight"], weights.get(key + name + ".bias"))

    def norm(value: str, name: str) -> str:
        return graph.layer_norm(value, key + name, weights[key + name + ".weight"], weights[key + name + ".bias"])

    normed, attention = norm(x, "self_attn_layer_norm"), "self_attn."
    q, k, v = (graph.op("Reshape", linear(normed, f"{attention}{name}_proj"), to_heads) for name in "qkv")
    keys, values = (
        (k, v) if past is None else (graph.op("Concat", p, n, axis=1) for p, n in zip(past, (k, v), strict=True))
    )
    mixed = graph.op("MultiHeadAttention", q, keys, values, "", "", bias, domain=FUSED, num_heads=heads)
    width = weights[key + "self_attn.q_proj.bias"].shape[0]
    x = graph.op("Add", x, linear(graph.reshape(mixed, -1, width), "self_attn.out_proj"))
    return graph.op("Add", x, linear(graph.op("Gelu", linear(norm(x, "final_layer_norm"), "fc1")), "fc2")), (k, v)


def _quantize(graph: Graph, rows: str, length: str, kernel: int, weights: dict[str, NDArray]) -> str:
    """Means of `kernel` positions (zeros beyond the end), then nearest codes: [B, positions, width] -> [B, tokens]."""
    codes = weights["codebook.weight"]
    missing = graph.op("Mod", graph.op("Neg", length), graph.ints(kernel))  # of the last mean, 0..kernel-1
    pads = graph.op("Concat", graph.ints(0, 0, 0, 0), missing, graph.ints(0), axis=0)
    windows = graph.reshape(graph.op("Pad", rows, pads), 0, -1, kernel, codes.shape[1])
    states = graph.op("ReduceMean", windows, graph.ints(2), keepdims=0)
    # ||x||^2 is the same for every code and cannot change the nearest one.
    products = graph.op("MatMul", states, graph.weight("codes", -2 * codes.T))
    distances = graph.op("Add", products, graph.weight("code_norms", np.square(codes).sum(1)))
    return graph.op("ArgMin", distances, axis=-1, keepdims=0)
