"""Flow checkpoint -> flow_condition.onnx (tokens to mu) and flow_velocity.onnx (one guided estimator call)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from build_engines.onnxruntime.graph import END, FLOAT, FUSED, INT64, Graph, weights_of
from vita_audio.checkpoint.audio_decoder import load_flow
from vita_audio.checkpoint.configs import AUDIO_DECODER, FlowConfig
from vita_audio.models.flow import Flow
from vita_audio.models.flow_estimator import NORM_GROUPS

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

CONDITION_FILE, VELOCITY_FILE = "flow_condition.onnx", "flow_velocity.onnx"


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """A stage of a build."""
    config, tensors = load_flow(build.checkpoint / AUDIO_DECODER)
    model = Flow(config).eval()
    model.load_state_dict(tensors)
    export_flow(model, folder)
    return {}


def export_flow(model: Flow, folder: Path) -> None:
    """Write both graphs of the flow; batch, tokens and frames are free, odd frame counts included.

    flow_condition.onnx: tokens int64 [B, N], frame_token int64 [F] -> mu [B, mels, F]
    flow_velocity.onnx: x, mu, cond [B, mels, F], t [1] -> velocity [B, mels, F], guidance applied inside
    """
    config, weights = model.config, weights_of(model.state_dict())
    metadata = {
        "mel_channels": str(config.output_size),
        "block_tokens": str(config.block_size),
        "vocab_size": str(config.vocab_size),
    }
    _condition_graph(model, weights).save(Path(folder) / CONDITION_FILE, metadata)
    _VelocityGraph(config, weights).graph.save(Path(folder) / VELOCITY_FILE, metadata)


def _condition_graph(model: Flow, weights: dict[str, NDArray]) -> Graph:
    config, graph, layers = model.config, Graph("flow_condition"), model.config.encoder_blocks
    width, heads, mels = config.encoder_output_size, config.encoder_heads, config.output_size
    tokens = graph.input("tokens", INT64, ["batch", "tokens"])
    frame_token = graph.input("frame_token", INT64, ["frames"])
    with torch.no_grad():  # all that happens to a token before the first layer depends on its id alone
        embedded = model.encoder.embed(model.input_embedding.weight) * width**0.5
    x = graph.op("Gather", graph.weight("embedded", embedded.numpy()), tokens)  # [B, N, width]

    length = graph.size(tokens, 1)
    positions = _relative_positions(graph, length, width)
    every = np.concatenate([weights[f"encoder.encoders.{i}.self_attn.linear_pos.weight"] for i in range(layers)])
    positions = graph.reshape(graph.linear(positions, "positions", every), -1, layers * heads, width // heads)
    positions = graph.op("Transpose", positions, perm=[1, 2, 0])  # [layers * heads, d, 2N - 1]
    bias = _block_causal_bias(graph, length, config.block_size)

    for index in range(layers):
        layer = f"encoder.encoders.{index}."
        ours = graph.slice(positions, graph.ints(index * heads), graph.ints((index + 1) * heads), 0)
        normed = _layer_norm(graph, x, layer + "norm_mha", weights)
        x = graph.op(
            "Add", x, _relative_attention(graph, normed, ours, bias, length, layer + "self_attn.", weights, heads)
        )
        inner = _linear(graph, _layer_norm(graph, x, layer + "norm_ff", weights), layer + "feed_forward.w_1", weights)
        inner = graph.op("QuickGelu", inner, domain=FUSED, alpha=1.0)  # x sigmoid(x), the SiLU
        x = graph.op("Add", x, _linear(graph, inner, layer + "feed_forward.w_2", weights))

    states = _linear(graph, _layer_norm(graph, x, "encoder.after_norm", weights), "encoder_proj", weights)
    x = graph.to_channels(graph.op("Gather", states, frame_token, axis=1), mels)  # [B, mels, 1, F]
    for index in range(config.regulator_convs):
        key, norm = f"length_regulator.model.{3 * index}", f"length_regulator.model.{3 * index + 1}"
        x = graph.conv(x, key, weights[key + ".weight"], weights[key + ".bias"], pads=(1, 1))
        x = graph.mish(graph.group_norm(x, norm, 1, weights[norm + ".weight"], weights[norm + ".bias"]))
    key = f"length_regulator.model.{3 * config.regulator_convs}"
    x = graph.conv(x, key, weights[key + ".weight"], weights[key + ".bias"])
    graph.output("mu", graph.reshape(x, 0, mels, -1), FLOAT, ["batch", mels, "frames"])
    return graph


def _linear(graph: Graph, x: str, key: str, weights: dict[str, NDArray]) -> str:
    return graph.linear(x, key, weights[key + ".weight"], weights[key + ".bias"])


def _layer_norm(graph: Graph, x: str, key: str, weights: dict[str, NDArray]) -> str:
    return graph.layer_norm(x, key, weights[key + ".weight"], weights[key + ".bias"])


def _relative_positions(graph: Graph, length: str, width: int) -> str:
    """Sinusoids of the distances N - 1 down to 1 - N: [2N - 1, width]; no window is too long."""
    one = graph.integer(1)
    distances = graph.op("Range", graph.op("Sub", length, one), graph.op("Neg", length), graph.integer(-1))
    rates = np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width)).astype(np.float32)
    distances = graph.op("Unsqueeze", graph.op("Cast", distances, to=FLOAT), graph.ints(1))
    angles = graph.op("Unsqueeze", graph.op("Mul", distances, graph.weight("rates", rates)), graph.ints(2))
    pairs = graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=2)
    return graph.reshape(pairs, -1, width)


def _block_causal_bias(graph: Graph, length: str, block: int) -> str:
    """[N, N]: 0 where a query (row) may see a key, the lowest float elsewhere."""
    index = graph.op("Range", graph.integer(0), length, graph.integer(1))
    owner = graph.op("Div", index, graph.integer(block))  # block of each token
    later = graph.op(
        "Greater", graph.op("Unsqueeze", owner, graph.ints(0)), graph.op("Unsqueeze", owner, graph.ints(1))
    )
    return graph.op("Where", later, graph.number(float(np.finfo(np.float32).min)), graph.number(0.0))


def _relative_attention(
    graph: Graph, x: str, positions: str, bias: str, length: str, key: str, weights: dict[str, NDArray], heads: int
) -> str:
    """Transformer-XL attention; positions [heads, d, 2N - 1]."""
    width = weights[key + "linear_q.bias"].shape[0]
    d = width // heads
    scale = np.float32(d**-0.5)  # folded into the queries

    def split(value: str, perm: list[int]) -> str:
        return graph.op("Transpose", graph.reshape(value, 0, 0, heads, d), perm=perm)

    q = graph.linear(x, key + "linear_q", weights[key + "linear_q.weight"] * scale)
    by_content, by_distance = (
        split(
            graph.op(
                "Add",
                q,
                graph.weight(key + name, (weights[key + "linear_q.bias"] + weights[key + name].reshape(-1)) * scale),
            ),
            [0, 2, 1, 3],
        )  # [B, heads, N, d]
        for name in ("pos_bias_u", "pos_bias_v")
    )
    k = split(_linear(graph, x, key + "linear_k", weights), [0, 2, 3, 1])  # [B, heads, d, N]
    v = split(_linear(graph, x, key + "linear_v", weights), [0, 2, 1, 3])
    distance = graph.op("MatMul", by_distance, positions)  # [B, heads, N, 2N - 1], column c of row i: N - 1 - c
    # One column more and the rows re-cut: row i moves by i, so that column j becomes distance i - j.
    padded = graph.op("Pad", distance, graph.ints(0, 0, 0, 1, 0, 0, 0, 0))
    shifted = graph.slice(
        graph.reshape(padded, 0, heads, -1), graph.op("Unsqueeze", length, graph.ints(0)), graph.ints(END), 2
    )
    wide = graph.op("Sub", graph.op("Add", length, length), graph.integer(1))
    shifted = graph.op("Reshape", shifted, graph.vector(0, heads, length, wide))
    aligned = graph.slice(shifted, graph.ints(0), graph.op("Unsqueeze", length, graph.ints(0)), 3)
    scores = graph.op("Add", graph.op("MatMul", by_content, k), graph.op("Add", aligned, bias))
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), v)
    mixed = graph.reshape(graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, width)
    return _linear(graph, mixed, key + "linear_out", weights)


class _VelocityGraph:
    """The U-Net, guided and free pass as one batch of 2B: rows 0..B-1 guided, B..2B-1 free."""

    def __init__(self, config: FlowConfig, weights: dict[str, NDArray]) -> None:
        self.config = config
        prefix = "decoder.estimator."
        self.weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        self.speaker = weights["spk_embed_affine_layer.bias"]  # features of the zero embedding
        self.graph = Graph("flow_velocity")
        self._build()

    def _build(self) -> None:
        graph, mels, channels = self.graph, self.config.output_size, self.config.channels
        shape: list[int | str] = ["batch", mels, "frames"]
        x, mu, cond = (graph.reshape(graph.input(name, FLOAT, shape), 0, mels, 1, -1) for name in ("x", "mu", "cond"))
        self.times = self._times(graph.input("t", FLOAT, [1]))
        x = self._first_stage(x, mu, cond)
        last, skips = len(channels) - 1, []
        for level, width in enumerate(channels):
            if level:
                x = self._stage(x, f"down_blocks.{level}.", width)
            skips.append(x)
            key = f"down_blocks.{level}.2" + ("" if level == last else ".conv")
            stride = 1 if level == last else 2
            x = graph.conv(x, key, self.weights[key + ".weight"], self.weights[key + ".bias"], (1, 1), stride)
        for index in range(self.config.num_mid_blocks):
            x = self._stage(x, f"mid_blocks.{index}.", channels[-1])
        for level, width in enumerate((*channels[-2::-1], channels[0])):
            skip = skips.pop()
            if level:  # going down an odd length was rounded up; the doubled frames beyond the skip are cut
                x = graph.slice(x, graph.ints(0), graph.op("Shape", skip, start=3, end=4), 3)
            x = self._stage(graph.op("Concat", x, skip, axis=1), f"up_blocks.{level}.", width)
            key = f"up_blocks.{level}.2" + ("" if level == last else ".conv")
            parts = self.weights[key + ".weight"], self.weights[key + ".bias"]
            if level == last:
                x = graph.conv(x, key, *parts, pads=(1, 1))
            else:
                x = graph.conv_transpose(x, key, *parts, padding=1, stride=2)
        x = self._conv_block(x, "final_block.")
        x = graph.conv(x, "final_proj", self.weights["final_proj.weight"], self.weights["final_proj.bias"])
        graph.output("velocity", graph.reshape(self._guide(x), 0, mels, -1), FLOAT, shape)

    def _guide(self, both: str) -> str:
        """(1 + g) guided - g free; without guidance there is no free half."""
        graph, guidance = self.graph, self.config.inference_cfg_rate
        if guidance == 0:
            return both
        guided, free = graph.ops("Split", both, outputs=2, axis=0, num_outputs=2)
        return graph.op(
            "Sub",
            graph.op("Mul", guided, graph.number(1 + guidance)),
            graph.op("Mul", free, graph.number(guidance)),
        )

    def _times(self, t: str) -> list[str]:
        """What each resnet block adds for the flow time, in graph order: [1, channels, 1, 1]."""
        graph, weights = self.graph, self.weights
        half = weights["time_mlp.linear_1.weight"].shape[1] // 2
        rates = 1000 * np.exp(np.arange(half) * (-np.log(10000.0) / (half - 1)))
        angles = graph.op("Mul", graph.reshape(t, 1, 1), graph.weight("time_rates", rates.astype(np.float32)))
        x = graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=1)
        x = graph.op("QuickGelu", self._gemm(x, "time_mlp.linear_1"), domain=FUSED, alpha=1.0)  # the SiLU
        x = graph.mish(self._gemm(x, "time_mlp.linear_2"))  # every block begins with it
        self.resnets = [f"down_blocks.{i}.0." for i in range(len(self.config.channels))]
        self.resnets += [f"mid_blocks.{i}.0." for i in range(self.config.num_mid_blocks)]
        self.resnets += [f"up_blocks.{i}.0." for i in range(len(self.config.channels))]
        every = [
            np.concatenate([weights[key + f"mlp.1.{part}"] for key in self.resnets]) for part in ("weight", "bias")
        ]
        widths = [len(weights[key + "mlp.1.bias"]) for key in self.resnets]
        x = graph.reshape(graph.linear(x, "time_shifts", *every), 1, -1, 1, 1)  # one product for all blocks
        return graph.ops("Split", x, graph.ints(*widths), outputs=len(widths), axis=1)

    def _first_stage(self, x: str, mu: str, cond: str) -> str:
        """Stage 0 on [x, mu, speaker, cond] and, for guidance, on [x, 0, 0, 0]: the part of x is shared by both."""
        graph, weights, mels = self.graph, self.weights, self.config.output_size
        frames = graph.op("Shape", x, start=3, end=4)
        ones = graph.op("Expand", graph.number(1.0), graph.op("Concat", graph.ints(1, 1, 1), frames, axis=0))
        batch = graph.op("Concat", graph.op("Shape", x, start=0, end=1), graph.ints(1, 1, 1), axis=0)
        rest = graph.op("Concat", mu, cond, graph.op("Expand", ones, batch), axis=1)  # [B, 2 mels + 1, 1, F]

        def both(key: str, pads: tuple[int, int]) -> str:
            weight, bias = weights[key + ".weight"], weights[key + ".bias"]
            of_x, of_mu, of_speaker, of_cond = np.split(weight, [mels, 2 * mels, 3 * mels], axis=1)
            # The speaker is the same in every frame: one channel of ones stands for all of its channels.
            constant = np.einsum("oik,i->ok", of_speaker, self.speaker)[:, None]
            free = graph.conv(x, key + ".x", of_x, bias, pads)
            extra = graph.conv(rest, key + ".rest", np.concatenate((of_mu, of_cond, constant), axis=1), None, pads)
            guided = graph.op("Add", free, extra)
            return graph.op("Concat", guided, free, axis=0) if self.config.inference_cfg_rate else guided

        key = "down_blocks.0.0."
        first = both(key + "block1.block.0", (1, 1))
        shortcut = both(key + "res_conv", (0, 0))
        return self._blocks(self._resnet_tail(first, shortcut, key), "down_blocks.0.", self.config.channels[0])

    def _stage(self, x: str, key: str, width: int) -> str:
        """Resnet block and transformer blocks: [2B, in, 1, T] -> [2B, width, 1, T]."""
        graph, weights, resnet = self.graph, self.weights, key + "0."
        conv, shortcut = resnet + "block1.block.0", resnet + "res_conv"
        first = graph.conv(x, conv, weights[conv + ".weight"], weights[conv + ".bias"], (1, 1))
        skip = graph.conv(x, shortcut, weights[shortcut + ".weight"], weights[shortcut + ".bias"])
        return self._blocks(self._resnet_tail(first, skip, resnet), key, width)

    def _resnet_tail(self, first: str, shortcut: str, key: str) -> str:
        """All of a resnet block after its first convolution."""
        graph = self.graph
        x = self._norm_mish(first, key + "block1.block.1")
        x = graph.op("Add", x, self.times[self.resnets.index(key)])
        return graph.op("Add", self._conv_block(x, key + "block2."), shortcut)

    def _conv_block(self, x: str, key: str) -> str:
        conv = key + "block.0"
        x = self.graph.conv(x, conv, self.weights[conv + ".weight"], self.weights[conv + ".bias"], (1, 1))
        return self._norm_mish(x, key + "block.1")

    def _norm_mish(self, x: str, key: str) -> str:
        parts = self.weights[key + ".weight"], self.weights[key + ".bias"]
        return self.graph.mish(self.graph.group_norm(x, key, NORM_GROUPS, *parts))

    def _blocks(self, x: str, stage: str, width: int) -> str:
        """The transformer blocks of a stage: [2B, width, 1, T] -> the same."""
        if self.config.n_blocks == 0:
            return x
        graph, weights, inner_width = self.graph, self.weights, self.config.num_heads * self.config.attention_head_dim
        rows = graph.to_rows(x, width)  # [2B, T, width]
        batch_and_time = graph.op("Shape", rows, start=0, end=2)
        to_heads = graph.op("Concat", batch_and_time, graph.ints(inner_width), axis=0)
        to_batch = graph.op("Concat", batch_and_time, graph.ints(width), axis=0)
        x = graph.reshape(rows, -1, width)
        for index in range(self.config.n_blocks):
            key = f"{stage}1.{index}."
            normed = _layer_norm(graph, x, key + "norm1", weights)
            q, k, v = (
                graph.op("Reshape", graph.gemm(normed, key, weights[key + ".weight"]), to_heads)
                for key in (f"{key}attn1.to_{name}" for name in "qkv")
            )
            mixed = graph.op("MultiHeadAttention", q, k, v, domain=FUSED, num_heads=self.config.num_heads)
            x = graph.op("Add", x, self._gemm(graph.reshape(mixed, -1, inner_width), key + "attn1.to_out.0"))
            inner = self._gemm(_layer_norm(graph, x, key + "norm3", weights), key + "ff.net.0.proj")
            x = graph.op("Add", x, self._gemm(graph.op("Gelu", inner), key + "ff.net.2"))
        return graph.to_channels(graph.op("Reshape", x, to_batch), width)

    def _gemm(self, x: str, key: str) -> str:
        return self.graph.gemm(x, key, self.weights[key + ".weight"], self.weights[key + ".bias"])
