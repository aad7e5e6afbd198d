"""SenseVoice encoder and projector of a Plus checkpoint -> sensevoice.onnx (features to prompt embeddings)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from build_engines.onnxruntime.graph import FLOAT, FUSED, INT64, Graph, weights_of
from vita_audio.checkpoint.configs import LANGUAGE_MODEL
from vita_audio.checkpoint.sensevoice import load_sensevoice
from vita_audio.engines.interface import Floats
from vita_audio.models.sensevoice import QUERY_ROWS, SenseVoice

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

SENSEVOICE_FILE = "sensevoice.onnx"


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """A stage of a build."""
    parts = load_sensevoice(build.checkpoint / LANGUAGE_MODEL)
    model = SenseVoice(parts.config).eval()
    model.load_state_dict(parts.tensors)
    export_sensevoice(model, parts.feature_shift, parts.feature_scale, folder)
    return {}


def export_sensevoice(model: SenseVoice, feature_shift: Floats, feature_scale: Floats, folder: Path) -> None:
    """Write the graph; batch and rows are free. Its metadata holds the features' shift and scale.

    sensevoice.onnx: features [B, R, input_size], lengths [B] (rows of each clip) -> embeddings [B, R + 4,
    embedding_size]; what follows a clip's rows in `features` changes none of its embeddings
    """
    builder = _SenseVoiceGraph(model)
    metadata = {
        "embedding_size": str(model.config.embedding_size),
        "feature_shift": json.dumps(feature_shift.tolist()),
        "feature_scale": json.dumps(feature_scale.tolist()),
    }
    builder.graph.save(Path(folder) / SENSEVOICE_FILE, metadata)


class _SenseVoiceGraph:
    """Values are rows [B * T, width]: products with a bias are one node. `to_clips` is the shape [B, T, any]."""

    def __init__(self, model: SenseVoice) -> None:
        self.config, self.weights, self.graph = model.config, weights_of(model.state_dict()), Graph("sensevoice")
        graph, config = self.graph, model.config
        features = graph.input("features", FLOAT, ["batch", "rows", config.input_size])
        lengths = graph.input("lengths", INT64, ["batch"])
        x = self._with_queries(features, float(model.tower.scale))
        length = graph.size(x, 1)
        index = graph.op("Range", graph.integer(0), length, graph.integer(1))
        x = graph.op("Add", x, self._positions(index))
        ends = graph.op("Unsqueeze", graph.op("Add", lengths, graph.ints(len(QUERY_ROWS))), graph.ints(1))
        valid = graph.op("Less", index, ends)  # [B, T]
        self.valid_rows = graph.op("Unsqueeze", graph.op("Cast", valid, to=FLOAT), graph.ints(2))
        self.bias = self._attention_bias(valid, length)
        self.to_clips = graph.vector(graph.size(x, 0), length, -1)
        x = graph.reshape(x, -1, config.input_size)
        for group, count in (("encoders0", 1), ("encoders", config.num_blocks - 1), ("tp_encoders", config.tp_blocks)):
            for layer in range(count):
                x = self._layer(x, f"tower.encoder.{group}.{layer}.")
            if group != "encoders0":
                x = self._norm(x, "tower.encoder.after_norm" if group == "encoders" else "tower.encoder.tp_norm")
        x = graph.op("Gelu", self._linear(self._norm(x, "projector.pre_proj_layernorm"), "projector.mlp.0"))
        embeddings = self._clips(self._linear(x, "projector.mlp.2"))
        graph.output("embeddings", embeddings, FLOAT, ["batch", "slots", config.embedding_size])

    def _with_queries(self, features: str, scale: float) -> str:
        """[B, R, input_size] -> [B, R + 4, input_size], scaled."""
        graph = self.graph
        queries = graph.weight(
            "queries", self.weights["tower.embed.weight"][None, list(QUERY_ROWS)] * np.float32(scale)
        )
        shape = graph.op("Concat", graph.op("Shape", features, start=0, end=1), graph.ints(1, 1), axis=0)
        scaled = graph.op("Mul", features, graph.number(scale))
        return graph.op("Concat", graph.op("Expand", queries, shape), scaled, axis=1)

    def _positions(self, index: str) -> str:
        """`models.sensevoice.sinusoids` for any number of rows: [T, input_size]."""
        graph, half = self.graph, self.config.input_size // 2
        rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10_000.0) / (half - 1)))
        places = graph.op("Add", graph.op("Cast", index, to=FLOAT), graph.number(1.0))
        angles = graph.op("Mul", graph.op("Unsqueeze", places, graph.ints(1)), graph.weight("rates", rates))
        return graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=1)

    def _attention_bias(self, valid: str, length: str) -> str:
        """[B, 1, T, T]: 0 for keys of the clip, the lowest float for those after it."""
        graph = self.graph
        lowest = graph.number(float(np.finfo(np.float32).min))
        bias = graph.op("Where", graph.op("Unsqueeze", valid, graph.ints(1, 2)), graph.number(0.0), lowest)
        return graph.op("Expand", bias, graph.vector(1, 1, length, 1))

    def _layer(self, x: str, key: str) -> str:
        graph = self.graph
        attended = self._attention(self._norm(x, key + "norm1"), key + "self_attn.")
        width = self.weights[key + "norm1.weight"].shape[0]
        x = graph.op("Add", x, attended) if width == self.config.output_size else attended
        inner = graph.op("Relu", self._linear(self._norm(x, key + "norm2"), key + "feed_forward.w_1"))
        return graph.op("Add", x, self._linear(inner, key + "feed_forward.w_2"))

    def _attention(self, x: str, key: str) -> str:
        graph, width = self.graph, self.config.output_size
        joined = self._clips(self._linear(x, key + "linear_q_k_v"))
        q, k, v = graph.ops("Split", joined, graph.ints(width, width, width), outputs=3, axis=2)
        heads = self.config.attention_heads
        mixed = graph.op("MultiHeadAttention", q, k, v, "", "", self.bias, domain=FUSED, num_heads=heads)
        values = graph.op("Mul", v, self.valid_rows)
        kernel = self.weights[key + "fsmn_block.weight"]
        channels = graph.to_channels(values, width)
        memory = graph.conv(channels, key + "fsmn_block", kernel, pads=self.config.memory_pads, groups=width)
        memory = graph.op("Add", graph.to_rows(memory, width), values)
        out = self._linear(graph.reshape(mixed, -1, width), key + "linear_out")
        return graph.op("Add", out, graph.reshape(memory, -1, width))

    def _clips(self, rows: str) -> str:
        return self.graph.op("Reshape", rows, self.to_clips)

    def _linear(self, x: str, key: str) -> str:
        return self.graph.gemm(x, key, self.weights[key + ".weight"], self.weights.get(key + ".bias"))

    def _norm(self, x: str, key: str) -> str:
        return self.graph.layer_norm(x, key, self.weights[key + ".weight"], self.weights[key + ".bias"])
