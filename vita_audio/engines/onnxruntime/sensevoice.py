"""SenseVoice encoder and projector of a Plus model on ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vita_audio.engines.interface import Floats
from vita_audio.engines.limits import check_stacked_features
from vita_audio.engines.onnxruntime.session import open_graph


class OnnxSenseVoice:
    """`SpeechEncoderEngine` over `sensevoice.onnx`, float32.

    Raises:
        EngineError: the graph is missing or was not made by `build_engines`.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self._session, metadata = open_graph(Path(folder) / "sensevoice.onnx", threads, any_length=True)
        self.embedding_size = int(metadata["embedding_size"])
        self.feature_shift: Floats = np.array(json.loads(metadata["feature_shift"]), np.float32)
        self.feature_scale: Floats = np.array(json.loads(metadata["feature_scale"]), np.float32)

    def embeddings(self, features: Floats) -> Floats:
        return self.embeddings_of([features])[0]

    def embeddings_of(self, clips: Sequence[Floats]) -> list[Floats]:
        """`embeddings` of several clips in one run."""
        width = len(self.feature_shift)
        for features in clips:
            check_stacked_features(features, width)
        batch = np.zeros((len(clips), max(map(len, clips)), width), np.float32)
        for row, features in enumerate(clips):
            batch[row, : len(features)] = features
        lengths = np.array([len(features) for features in clips], np.int64)
        (made,) = self._session.run(None, {"features": batch, "lengths": lengths})
        queries = made.shape[1] - batch.shape[1]
        return [rows[: length + queries] for rows, length in zip(made, lengths, strict=True)]
