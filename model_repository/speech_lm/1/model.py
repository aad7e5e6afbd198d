"""Triton adapter of `serving.speech_lm_stage`: Start -> Deltas and Probes as they come; Cancel, Released -> nothing.

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
from serving.speech_lm_stage import SpeechLmStage
from vita_audio.contract.messages import Message


class TritonPythonModel:
    """Continuous batching of all streams in one worker."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        heartbeats = Heartbeats.serve(args["model_name"], args["model_instance_name"])
        self._stage = SpeechLmStage.serve(args["model_instance_name"], heartbeats)
        self._calls = ModelCalls(once=True, most_rows_bytes=self._stage.most_rows_bytes)
        self._metrics = MetricsPublisher(self._stage.recorder, self._stage.measure, heartbeats)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._stage.accept(self._calls.read(request), partial(self._send, sender), sender.is_cancelled)
            except Exception as error:  # noqa: BLE001 - becomes the answer
                self._stage.refusals.count(error)
                sender.send(error_response(error), flags=FINAL)

    def finalize(self) -> None:
        self._metrics.close()
        self._stage.close()

    def _send(self, sender: pb_utils.InferenceResponseSender, message: Message | None, final: bool) -> None:
        send(sender, None if message is None else self._calls.tensors(message), final)
