"""Triton adapter of `serving.speech_stage`: Start -> answers and Probes for `delivery`; Cancel -> nothing.

`execute` only enqueues, the stage's threads answer. Every request gets exactly one final flag: with its last message,
with an error, or alone.
"""

from __future__ import annotations

from functools import partial

import triton_python_backend_utils as pb_utils

from serving.adapter import FINAL, ModelCalls, error_response, send
from serving.heartbeat import Heartbeats
from serving.logs import start_logging
from serving.metrics.publisher import MetricsPublisher
from serving.speech_stage import Send, SpeechStage


class TritonPythonModel:
    """Generates and decodes all streams in one process."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        heartbeats = Heartbeats.serve(args["model_name"], args["model_instance_name"])
        self._stage = SpeechStage.serve(args["model_instance_name"], heartbeats)
        self._calls = ModelCalls(once=True, most_rows_bytes=self._stage.most_rows_bytes)
        self._metrics = MetricsPublisher(self._stage.recorder, self._stage.measure, heartbeats)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            answer: Send = partial(self._calls.send_to_delivery, partial(send, sender))
            try:
                self._stage.accept(self._calls.read(request), answer, sender.is_cancelled)
            except Exception as error:  # noqa: BLE001 - becomes the answer
                self._stage.refusals.count(error)
                sender.send(error_response(error), flags=FINAL)

    def finalize(self) -> None:
        self._metrics.close()
        self._stage.close()
