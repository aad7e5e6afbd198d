"""Speech tokenizer or SenseVoice, flow and vocoder on TensorRT, behind `interface.py`. **Not run on a GPU yet.**

Engines and plan are made by `build_engines.tensorrt_audio.build` in the serving container. Flow and vocoder take
tensors of the device as torch_cuda's do, so the streaming decoder keeps its state there and captures its functions with
these engines inside (`torch_cuda/device_arrays.py`); speech runs as plain calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.arrays import Array
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_condition, check_features, check_stacked_features
from vita_audio.engines.tensorrt_audio.plan import (
    BATCH,
    FLOW_CONDITION,
    FLOW_VELOCITY,
    SENSEVOICE,
    SPEECH_TOKENIZER,
    VOCODER,
    VOCODER_F0,
    Geometry,
    load_plan,
)
from vita_audio.engines.tensorrt_audio.session import Device, Session
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays, on_device


class TensorRtSpeechTokenizer:
    """`SpeechTokenizerEngine` over `speech_tokenizer.engine`.

    Raises:
        EngineError: TensorRT, a GPU or an engine is missing, or the engines were built for another GPU or TensorRT.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        opened, (self._session,) = _open(Path(folder), device, SPEECH_TOKENIZER)
        self._device = opened.torch
        metadata = self._session.plan.metadata
        self.num_mel_bins, self.max_frames = int(metadata["num_mel_bins"]), int(metadata["max_frames"])
        self._frames_per_token = int(metadata["frames_per_token"])

    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        check_features(features, valid_frames, self.num_mel_bins, self.max_frames)
        ids: Ints = self._ids(features[None], np.array([valid_frames], np.int64))
        return ids[0, : -(-valid_frames // self._frames_per_token)]

    @on_device
    def _ids(self, features: Tensor, valid_frames: Tensor) -> Tensor:
        inputs = {"features": features, "valid_frames": valid_frames}
        return self._session({BATCH: 1, "frames": features.shape[2]}, inputs)


class TensorRtSenseVoice:
    """`SpeechEncoderEngine` over `sensevoice.engine`.

    Raises:
        EngineError: as `TensorRtSpeechTokenizer`.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        opened, (self._session,) = _open(Path(folder), device, SENSEVOICE)
        self._device = opened.torch
        metadata = self._session.plan.metadata
        self.embedding_size = int(metadata["embedding_size"])
        self.feature_shift: Floats = np.array(json.loads(metadata["feature_shift"]), np.float32)
        self.feature_scale: Floats = np.array(json.loads(metadata["feature_scale"]), np.float32)

    def embeddings(self, features: Floats) -> Floats:
        check_stacked_features(features, len(self.feature_shift))
        embeddings: Floats = self._embeddings(features[None], np.array([len(features)], np.int64))
        return embeddings[0]

    @on_device
    def _embeddings(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self._session(clip_geometry(features[0]), {"features": features, "lengths": lengths})


class TensorRtFlow:
    """`DeviceFlowEngine` over `flow_condition.engine` and `flow_velocity.engine`.

    Raises:
        EngineError: as `TensorRtSpeechTokenizer`.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        opened, (self._means, self._velocity) = _open(Path(folder), device, FLOW_CONDITION, FLOW_VELOCITY)
        self._device, self.arrays = opened.torch, DeviceArrays(opened.torch)
        metadata = self._means.plan.metadata
        self.mel_channels, self.block_tokens = int(metadata["mel_channels"]), int(metadata["block_tokens"])
        self.vocab_size = int(metadata["vocab_size"])

    def condition(self, tokens: Array, frame_token: Array) -> Array:
        if isinstance(tokens, np.ndarray):
            check_condition(tokens, frame_token, self.vocab_size)
        return self._condition(tokens, frame_token)

    @on_device
    def _condition(self, tokens: Tensor, frame_token: Tensor) -> Tensor:
        maps = frame_token.expand(len(tokens), -1)  # one for all windows, or one for each
        return self._means(window_geometry(tokens, maps), {"tokens": tokens, "frame_token": maps})

    @on_device
    def velocity(self, x: Tensor, mu: Tensor, cond: Tensor, t: float) -> Tensor:
        program = self._velocity.program(mel_geometry(x))
        program.load({"x": x, "mu": mu, "cond": cond})
        program.inputs["t"].fill_(t)
        return program.run()

    @on_device
    def solve(self, x: Tensor, mu: Tensor, cond: Tensor, times: Sequence[float]) -> Tensor:
        """All Euler steps from times[0] to times[-1]: [B, mels, F] -> mel [B, mels, F].

        x stays where the engine reads it: a step's velocity is in the output when it is added there.
        """
        program = self._velocity.program(mel_geometry(x))
        program.load({"x": x, "mu": mu, "cond": cond})
        state, t = program.inputs["x"], program.inputs["t"]
        for start, stop in pairwise(times):
            t.fill_(start)
            state.add_(program.run(), alpha=stop - start)
        return state


class TensorRtVocoder:
    """`VocoderEngine` of tensors or NumPy arrays over `vocoder_f0.engine` and `vocoder.engine`.

    Raises:
        EngineError: as `TensorRtSpeechTokenizer`.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        opened, (self._f0, self._vocoder) = _open(Path(folder), device, VOCODER_F0, VOCODER)
        self._device, self.arrays = opened.torch, DeviceArrays(opened.torch)
        metadata = self._vocoder.plan.metadata
        self.mel_channels = int(metadata["mel_channels"])
        self.source_weight: Floats = np.array(json.loads(metadata["source_weight"]), np.float32)
        self.source_bias = float(json.loads(metadata["source_bias"]))
        self.harmonics = len(self.source_weight)

    @on_device
    def f0(self, mel: Tensor) -> Tensor:
        return self._f0(mel_geometry(mel), {"mel": mel})

    @on_device
    def synthesize(self, mel: Tensor, source: Tensor) -> Tensor:
        return self._vocoder(wave_geometry(mel, source), {"mel": mel, "source": source})


def window_geometry(tokens: Array, frame_token: Array) -> Geometry:
    """tokens [B, N], frame_token [B, F]."""
    return {BATCH: len(tokens), "tokens": tokens.shape[1], "frames": frame_token.shape[1]}


def clip_geometry(features: Array) -> Geometry:
    """features [rows, 560] of one clip."""
    return {BATCH: 1, "rows": len(features)}


def mel_geometry(mel: Array) -> Geometry:
    """mel [B, mels, T]."""
    return {BATCH: len(mel), "frames": mel.shape[2]}


def wave_geometry(mel: Array, source: Array) -> Geometry:
    """mel [B, mels, T], source [B, 256 T]."""
    return {**mel_geometry(mel), "samples": source.shape[1]}


def _open(folder: Path, index: int, *names: str) -> tuple[Device, list[Session]]:
    """A device, and sessions of some engines of a folder there."""
    plan = load_plan(folder)
    missing = [name for name in names if name not in plan.engines]
    if missing:
        raise EngineError(f"{folder}: the plan has no {', '.join(missing)}; build the audio engines again")
    device = Device(plan, index)
    return device, [Session(device, folder / f"{name}.engine", plan.engines[name]) for name in names]
