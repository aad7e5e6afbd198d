"""Speech tokenizer or SenseVoice, flow and vocoder on TensorRT, behind `interface.py`. **Not run on a GPU yet.**

Engines and plan are made by `build_engines.tensorrt_audio.build` in the serving container. Chunk geometries of the
decoder's schedule run as CUDA graphs, batches padded to a bucket; ends of streams, of any length, run as plain calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from vita_audio.contract.errors import EngineError
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
    AudioPlan,
    Geometry,
    load_plan,
)
from vita_audio.engines.tensorrt_audio.session import Arrays, Device, Session


class TensorRtSpeechTokenizer:
    """`SpeechTokenizerEngine` over `speech_tokenizer.engine`.

    Raises:
        EngineError: TensorRT, a GPU or an engine is missing, or the engines were built for another GPU or TensorRT.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        (self._session,) = _open(Path(folder), device, SPEECH_TOKENIZER)
        metadata = self._session.plan.metadata
        self.num_mel_bins, self.max_frames = int(metadata["num_mel_bins"]), int(metadata["max_frames"])
        self._frames_per_token = int(metadata["frames_per_token"])

    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        check_features(features, valid_frames, self.num_mel_bins, self.max_frames)
        inputs: Arrays = {"features": features[None], "valid_frames": np.array([valid_frames], np.int64)}
        ids = self._session.run({BATCH: 1, "frames": features.shape[1]}, inputs)
        return ids[0, : -(-valid_frames // self._frames_per_token)]


class TensorRtSenseVoice:
    """`SpeechEncoderEngine` over `sensevoice.engine`.

    Raises:
        EngineError: as `TensorRtSpeechTokenizer`.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        (self._session,) = _open(Path(folder), device, SENSEVOICE)
        metadata = self._session.plan.metadata
        self.embedding_size = int(metadata["embedding_size"])
        self.feature_shift: Floats = np.array(json.loads(metadata["feature_shift"]), np.float32)
        self.feature_scale: Floats = np.array(json.loads(metadata["feature_scale"]), np.float32)

    def embeddings(self, features: Floats) -> Floats:
        check_stacked_features(features, len(self.feature_shift))
        inputs: Arrays = {"features": features[None], "lengths": np.array([len(features)], np.int64)}
        return self._session.run(clip_geometry(features), inputs)[0]


class TensorRtFlow:
    """`FlowEngine` over `flow_condition.engine` and `flow_velocity.engine`.

    Raises:
        EngineError: as `TensorRtSpeechTokenizer`.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        self._condition, self._velocity = _open(Path(folder), device, FLOW_CONDITION, FLOW_VELOCITY)
        metadata = self._condition.plan.metadata
        self.mel_channels, self.block_tokens = int(metadata["mel_channels"]), int(metadata["block_tokens"])
        self.vocab_size = int(metadata["vocab_size"])

    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        check_condition(tokens, frame_token, self.vocab_size)
        inputs = {"tokens": tokens.astype(np.int64), "frame_token": frame_token.astype(np.int64)}
        return self._condition.run(window_geometry(tokens, frame_token), inputs)

    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        inputs = {"x": x, "mu": mu, "cond": cond, "t": np.array([t], np.float32)}
        return self._velocity.run(mel_geometry(x), inputs)

    def solve(self, x: Floats, mu: Floats, cond: Floats, times: Sequence[float]) -> Floats:
        """All Euler steps from times[0] to times[-1] with x kept on the device: [B, mels, F] -> mel [B, mels, F]."""
        session = self._velocity
        with torch.cuda.stream(session.stream):
            program = session.program(mel_geometry(x))
            program.load({"x": x, "mu": mu, "cond": cond})
            state, t = program.inputs["x"], program.inputs["t"]
            for start, stop in pairwise(times):
                t.fill_(start)
                program.enqueue()
                state.add_(program.output, alpha=stop - start)
            return program.read(len(x), state)


class TensorRtVocoder:
    """`VocoderEngine` over `vocoder_f0.engine` and `vocoder.engine`.

    Raises:
        EngineError: as `TensorRtSpeechTokenizer`.
    """

    def __init__(self, folder: str | Path, device: int = 0) -> None:
        self._f0, self._vocoder = _open(Path(folder), device, VOCODER_F0, VOCODER)
        metadata = self._vocoder.plan.metadata
        self.mel_channels = int(metadata["mel_channels"])
        self.source_weight: Floats = np.array(json.loads(metadata["source_weight"]), np.float32)
        self.source_bias = float(json.loads(metadata["source_bias"]))
        self.harmonics = len(self.source_weight)

    def f0(self, mel: Floats) -> Floats:
        return self._f0.run(mel_geometry(mel), {"mel": mel})

    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        return self._vocoder.run(wave_geometry(mel, source), {"mel": mel, "source": source})


def window_geometry(tokens: Ints, frame_token: Ints) -> Geometry:
    """tokens [B, N], frame_token [F]."""
    return {BATCH: len(tokens), "tokens": tokens.shape[1], "frames": len(frame_token)}


def clip_geometry(features: Floats) -> Geometry:
    """features [rows, 560] of one clip."""
    return {BATCH: 1, "rows": len(features)}


def mel_geometry(mel: Floats) -> Geometry:
    """mel [B, mels, T]."""
    return {BATCH: len(mel), "frames": mel.shape[2]}


def wave_geometry(mel: Floats, source: Floats) -> Geometry:
    """mel [B, mels, T], source [B, 256 T]."""
    return {**mel_geometry(mel), "samples": source.shape[1]}


def _open(folder: Path, index: int, *names: str) -> list[Session]:
    """Sessions of some engines of a folder, on one stream."""
    plan = load_plan(folder)
    missing = [name for name in names if name not in plan.engines]
    if missing:
        raise EngineError(f"{folder}: the plan has no {', '.join(missing)}; build the audio engines again")
    device = Device(plan, index)
    return [Session(device, folder / f"{name}.engine", plan.engines[name], _batch(plan, name)) for name in names]


def _batch(plan: AudioPlan, name: str) -> int:
    return 1 if name in (SPEECH_TOKENIZER, SENSEVOICE) else plan.max_batch
