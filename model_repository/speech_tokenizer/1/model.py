"""Triton adapter of `serving.speech_tokenizer_stage`: AUDIO (16 kHz) -> CODES or EMBEDDINGS."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from serving.adapter import ModelCalls, error_response
from serving.heartbeat import Heartbeats
from serving.logs import start_logging
from serving.metrics.publisher import MetricsPublisher
from serving.speech_tokenizer_stage import SpeechTokenizerStage


class TritonPythonModel:
    """Speech in, audio token codes out; or embeddings, which of the two is the checkpoint's."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        self._calls = ModelCalls()
        heartbeats = Heartbeats.serve(args["model_name"], args["model_instance_name"])
        self._stage = SpeechTokenizerStage(heartbeats)
        self._metrics = MetricsPublisher(self._stage.recorder, lambda: None, heartbeats)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self._metrics.close()

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            made = self._stage.read(self._calls.read_speech(request))
            return pb_utils.InferenceResponse([pb_utils.Tensor(self._stage.output, made)])
        except Exception as error:  # noqa: BLE001 - becomes the answer
            self._stage.refusals.count(error)
            return error_response(error)
