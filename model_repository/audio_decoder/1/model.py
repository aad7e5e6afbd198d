"""Triton adapter of `serving.audio_decoder_stage`: Delta -> TEXT_DELTA, TOKENS, PCM, STATUS; Probe -> nothing.

`execute` only enqueues, the stage's threads answer, with a response for each decode that a request makes due. Every
request gets exactly one final flag, with its last response or alone, and never an error.
"""

from __future__ import annotations

from functools import partial

import triton_python_backend_utils as pb_utils

from serving.adapter import ModelCalls, send_chunk
from serving.audio_decoder_stage import AudioDecoderStage
from serving.heartbeat import Heartbeats
from serving.logs import start_logging
from serving.metrics.publisher import MetricsPublisher


class TritonPythonModel:
    """Decodes the chunks of all streams in one worker."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        self._calls = ModelCalls()
        heartbeats = Heartbeats.serve(args["model_name"], args["model_instance_name"])
        self._stage = AudioDecoderStage.serve(
            args["model_instance_name"], self._calls.notify_language_model, heartbeats
        )
        self._metrics = MetricsPublisher(self._stage.recorder, self._stage.measure, heartbeats)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            answer = partial(send_chunk, request.get_response_sender())
            self._stage.accept(partial(self._calls.read, request), answer, request.is_cancelled)

    def finalize(self) -> None:
        self._metrics.close()
        self._stage.close()
