"""Flow and vocoder on ONNX Runtime: the CPU default. Needs only the engines folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_condition
from vita_audio.engines.onnxruntime.session import open_graph


class OnnxFlow:
    """`FlowEngine` over `flow_condition.onnx` and `flow_velocity.onnx`.

    Raises:
        EngineError: a graph is missing or was not made by `build_engines`.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self._condition, metadata = open_graph(Path(folder) / "flow_condition.onnx", threads)
        self._velocity, _ = open_graph(Path(folder) / "flow_velocity.onnx", threads)
        self.mel_channels = int(metadata["mel_channels"])
        self.block_tokens = int(metadata["block_tokens"])
        self.vocab_size = int(metadata["vocab_size"])

    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        check_condition(tokens, frame_token, self.vocab_size)
        inputs = {"tokens": tokens.astype(np.int64), "frame_token": frame_token.astype(np.int64)}
        return self._condition.run(None, inputs)[0]

    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        return self._velocity.run(None, {"x": x, "mu": mu, "cond": cond, "t": np.array([t], np.float32)})[0]


class OnnxVocoder:
    """`VocoderEngine` over `vocoder_f0.onnx` and `vocoder.onnx`.

    Raises:
        EngineError: a graph is missing or was not made by `build_engines`.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self._f0, _ = open_graph(Path(folder) / "vocoder_f0.onnx", threads)
        self._vocoder, metadata = open_graph(Path(folder) / "vocoder.onnx", threads)
        self.mel_channels = int(metadata["mel_channels"])
        self.source_weight: Floats = np.array(json.loads(metadata["source_weight"]), np.float32)
        self.source_bias = float(json.loads(metadata["source_bias"]))
        self.harmonics = len(self.source_weight)

    def f0(self, mel: Floats) -> Floats:
        return self._f0.run(None, {"mel": mel})[0]

    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        return self._vocoder.run(None, {"mel": mel, "source": source})[0]
