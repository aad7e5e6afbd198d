"""Triton adapter of `serving.delivery_stage`: TEXT_DELTA, TOKENS, PCM, STATUS, PROMPT -> the same; a Probe -> nothing.

Every request gets exactly one final flag, with its response or alone, and never an error.
"""

from __future__ import annotations

from functools import partial

import triton_python_backend_utils as pb_utils

from serving.adapter import ModelCalls, pass_on, send_chunk
from serving.delivery_stage import DeliveryStage
from serving.heartbeat import Heartbeats
from serving.logs import start_logging
from serving.metrics.publisher import MetricsPublisher


class TritonPythonModel:
    """The last step of the ensemble when `speech` is one process."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        self._calls = ModelCalls()
        heartbeats = Heartbeats.serve(args["model_name"], args["model_instance_name"])
        self._stage = DeliveryStage(partial(self._calls.notify_language_model, model="speech"), heartbeats)
        self._metrics = MetricsPublisher(self._stage.recorder, lambda: None, heartbeats)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            deliver, refuse = partial(pass_on, request, sender), partial(send_chunk, sender)
            self._stage.accept(partial(self._calls.read, request), deliver, refuse, request.is_cancelled)

    def finalize(self) -> None:
        self._metrics.close()
        self._stage.close()
