"""Vocoder checkpoint -> vocoder_f0.onnx (mel to f0) and vocoder.onnx (mel and harmonic source to waveform)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from build_engines.onnxruntime.graph import FLOAT, Graph, weights_of
from vita_audio.checkpoint.audio_decoder import load_vocoder
from vita_audio.checkpoint.configs import AUDIO_DECODER
from vita_audio.models.vocoder import FINAL_SLOPE, MAX_MAGNITUDE, Vocoder

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

F0_FILE, VOCODER_FILE = "vocoder_f0.onnx", "vocoder.onnx"


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """A stage of a build."""
    config, tensors = load_vocoder(build.checkpoint / AUDIO_DECODER)
    model = Vocoder(config).eval()
    model.load_state_dict(tensors)
    export_vocoder(model, folder)
    return {}


def export_vocoder(model: Vocoder, folder: Path) -> None:
    """Write both graphs of the vocoder; batch and frames are free. Phases and noise are made outside, by the caller.

    vocoder_f0.onnx: mel [B, mels, T] -> f0 [B, T] in Hz
    vocoder.onnx: mel [B, mels, T], source [B, 256 T] -> wave [B, 256 T]; its metadata holds the source's mixer
    """
    config, weights = model.config, weights_of(model.state_dict())
    metadata = {
        "mel_channels": str(config.in_channels),
        "samples_per_frame": str(config.samples_per_frame),
        "source_weight": json.dumps(weights["m_source.l_linear.weight"][0].tolist()),
        "source_bias": json.dumps(weights["m_source.l_linear.bias"].tolist()[0]),
    }
    _f0_graph(model, weights).save(Path(folder) / F0_FILE, metadata)
    _VocoderGraph(model, weights).graph.save(Path(folder) / VOCODER_FILE, metadata)


def _f0_graph(model: Vocoder, weights: dict[str, NDArray]) -> Graph:
    graph, mels = Graph("vocoder_f0"), model.config.in_channels
    x = graph.reshape(graph.input("mel", FLOAT, ["batch", mels, "frames"]), 0, mels, 1, -1)
    for index in range(5):
        key = f"f0_predictor.condnet.{2 * index}"
        x = graph.op("Elu", graph.conv(x, key, weights[key + ".weight"], weights[key + ".bias"], pads=(1, 1)))
    key = "f0_predictor.classifier"  # a linear layer over channels is a convolution of length 1
    x = graph.conv(x, key, weights[key + ".weight"][:, :, None], weights[key + ".bias"])
    graph.output("f0", graph.op("Abs", graph.reshape(x, 0, -1)), FLOAT, ["batch", "frames"])
    return graph


class _VocoderGraph:
    """The generator: source spectrum by convolution, two up-sampling levels, inverse transform by convolution."""

    def __init__(self, model: Vocoder, weights: dict[str, NDArray]) -> None:
        self.model, self.config, self.weights = model, model.config, weights
        self.graph = Graph("vocoder")
        self._build()

    def _build(self) -> None:
        graph, config = self.graph, self.config
        mels, kernels, bins = config.in_channels, len(config.resblock_kernel_sizes), config.istft_n_fft // 2 + 1
        mel = graph.reshape(graph.input("mel", FLOAT, ["batch", mels, "frames"]), 0, mels, 1, -1)
        spectrum = self._stft(graph.input("source", FLOAT, ["batch", "samples"]))
        x, scale = self._conv(mel, "conv_pre"), 1.0
        for level, rate in enumerate(config.upsample_rates):
            # The mean over resblocks is left as a sum: a leaky ReLU passes the factor on to the next weights.
            weight, bias = self.weights[f"ups.{level}.weight"] * np.float32(scale), self.weights[f"ups.{level}.bias"]
            x = graph.op("LeakyRelu", x, alpha=config.lrelu_slope)
            padding = (config.upsample_kernel_sizes[level] - rate) // 2
            x = graph.conv_transpose(x, f"ups.{level}", weight, bias, padding, rate)
            if level == len(config.upsample_rates) - 1:  # one frame more, by reflection, as the spectrum has
                x = graph.op("Concat", graph.slice(x, graph.ints(1), graph.ints(2), 3), x, axis=3)
            stride = math.prod(config.upsample_rates[level + 1 :])
            pads = (stride // 2, stride // 2) if stride > 1 else (0, 0)
            source = self._conv(spectrum, f"source_downs.{level}", pads, stride)
            dilations = config.source_resblock_dilation_sizes[level]
            x = graph.op("Add", x, self._resblock(source, f"source_resblocks.{level}.", dilations))
            blocks = [
                self._resblock(x, f"resblocks.{level * kernels + index}.", dilations)
                for index, dilations in enumerate(config.resblock_dilation_sizes)
            ]
            x, scale = graph.op("Sum", *blocks), 1 / kernels
        x = graph.op("LeakyRelu", x, alpha=FINAL_SLOPE)
        weight = self.weights["conv_post.weight"] * np.float32(scale)
        x = graph.conv(x, "conv_post", weight, self.weights["conv_post.bias"], pads=(3, 3))
        magnitude, angle = graph.ops("Split", x, graph.ints(bins, bins), outputs=2, axis=1)
        magnitude = graph.op("Min", graph.op("Exp", magnitude), graph.number(MAX_MAGNITUDE))
        phase = graph.op("Sin", angle)
        parts = (graph.op("Mul", magnitude, graph.op(kind, phase)) for kind in ("Cos", "Sin"))
        wave = self._inverse_stft(graph.op("Concat", *parts, axis=1))
        limit = graph.number(config.audio_limit)
        wave = graph.op("Clip", wave, graph.number(-config.audio_limit), limit)
        graph.output("wave", wave, FLOAT, ["batch", "samples"])

    def _stft(self, source: str) -> str:
        """[B, samples] -> real and imaginary parts [B, n_fft + 2, 1, samples / hop + 1]."""
        graph, edge = self.graph, self.config.istft_n_fft // 2
        padded = graph.op(
            "Pad", graph.reshape(source, 0, 1, 1, -1), graph.ints(0, 0, 0, edge, 0, 0, 0, edge), mode="reflect"
        )
        analysis = self.model.stft.get_buffer("analysis").numpy()
        return graph.conv(padded, "stft", analysis, stride=self.config.istft_hop)

    def _inverse_stft(self, spectrum: str) -> str:
        """Overlap-add as a convolution: output block m of `hop` samples sums a part of each of n_fft / hop frames."""
        graph, hop, n_fft = self.graph, self.config.istft_hop, self.config.istft_n_fft

        def overlap_add(x: str, key: str, kernel: NDArray) -> str:
            """x [B, in, 1, frames], kernel [in, 1, n_fft] of the transposed convolution -> [B, its samples]."""
            blocks = n_fft // hop
            # Frame m - q adds its samples q * hop + r to sample r of block m; a convolution reads frames left to right.
            parts = kernel.reshape(kernel.shape[0], blocks, hop)[:, ::-1].transpose(2, 0, 1)  # [hop, in, blocks]
            y = graph.conv(x, key, parts, pads=(blocks - 1, blocks - 1))  # [B, hop, 1, frames + blocks - 1]
            return graph.reshape(graph.to_rows(y, hop), 0, -1)

        wave = overlap_add(spectrum, "inverse_stft", self.model.stft.get_buffer("synthesis").numpy())
        frames = graph.op("Concat", graph.ints(1, 1, 1), graph.op("Shape", spectrum, start=3, end=4), axis=0)
        window = self.model.stft.get_buffer("squared_window").numpy()
        envelope = overlap_add(graph.op("Expand", graph.number(1.0), frames), "envelope", window)
        edges = graph.ints(n_fft // 2), graph.ints(-(n_fft // 2))
        return graph.op("Div", graph.slice(wave, *edges, 1), graph.slice(envelope, *edges, 1))

    def _resblock(self, x: str, key: str, dilations: tuple[int, ...]) -> str:
        graph = self.graph
        for index, dilation in enumerate(dilations):
            y = self._snake(x, f"{key}activations1.{index}")
            y = self._conv(y, f"{key}convs1.{index}", dilation=dilation)
            y = self._snake(y, f"{key}activations2.{index}")
            x = graph.op("Add", x, self._conv(y, f"{key}convs2.{index}"))
        return x

    def _snake(self, x: str, key: str) -> str:
        """x + sin^2(alpha x) / alpha."""
        graph, alpha = self.graph, self.weights[key + ".alpha"][:, None, None]
        sine = graph.op("Sin", graph.op("Mul", x, graph.weight(key + ".alpha", alpha)))
        inverse = graph.weight(key + ".inverse", (1 / (alpha + 1e-9)).astype(np.float32))
        return graph.op("Add", x, graph.op("Mul", graph.op("Mul", sine, sine), inverse))

    def _conv(self, x: str, key: str, pads: tuple[int, int] | None = None, stride: int = 1, dilation: int = 1) -> str:
        """A convolution of the checkpoint; pads default to those that keep the length."""
        weight = self.weights[key + ".weight"]
        same = dilation * (weight.shape[2] - 1) // 2
        return self.graph.conv(x, key, weight, self.weights[key + ".bias"], pads or (same, same), stride, dilation)
