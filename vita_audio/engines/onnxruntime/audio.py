"""Speech tokenizer, flow and vocoder on ONNX Runtime: the CPU default. Needs only the engines folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_condition, check_features
from vita_audio.engines.onnxruntime.session import open_session


class OnnxSpeechTokenizer:
    """`SpeechTokenizerEngine` over `speech_tokenizer.onnx`.

    Raises:
        EngineError: the graph is missing or was not made by `build_engines`.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self._session, metadata = _open(Path(folder) / "speech_tokenizer.onnx", threads, any_length=True)
        self.num_mel_bins = int(metadata["num_mel_bins"])
        self.max_frames = int(metadata["max_frames"])
        self._frames_per_token = int(metadata["frames_per_token"])

    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        check_features(features, valid_frames, self.num_mel_bins, self.max_frames)
        inputs = {"features": features[None], "valid_frames": np.array([valid_frames], np.int64)}
        ids = self._session.run(None, inputs)[0]
        return ids[0, : -(-valid_frames // self._frames_per_token)]


class OnnxFlow:
    """`FlowEngine` over `flow_condition.onnx` and `flow_velocity.onnx`.

    Raises:
        EngineError: a graph is missing or was not made by `build_engines`.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self._condition, metadata = _open(Path(folder) / "flow_condition.onnx", threads)
        self._velocity, _ = _open(Path(folder) / "flow_velocity.onnx", threads)
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
        self._f0, _ = _open(Path(folder) / "vocoder_f0.onnx", threads)
        self._vocoder, metadata = _open(Path(folder) / "vocoder.onnx", threads)
        self.mel_channels = int(metadata["mel_channels"])
        self.source_weight: Floats = np.array(json.loads(metadata["source_weight"]), np.float32)
        self.source_bias = float(json.loads(metadata["source_bias"]))
        self.harmonics = len(self.source_weight)

    def f0(self, mel: Floats) -> Floats:
        return self._f0.run(None, {"mel": mel})[0]

    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        return self._vocoder.run(None, {"mel": mel, "source": source})[0]


def _open(path: Path, threads: int, any_length: bool = False) -> tuple[ort.InferenceSession, dict[str, str]]:
    session = open_session(path, threads, any_length)
    metadata = session.get_modelmeta().custom_metadata_map
    if not metadata:
        raise EngineError(f"{path}: has no metadata, so it is not one of our graphs; rebuild the engines")
    return session, metadata
