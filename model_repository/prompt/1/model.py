"""Triton adapter of `serving.prompt_stage`: public inputs -> Start."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from serving.adapter import ModelCalls, error_response, read
from serving.heartbeat import Heartbeats
from serving.logs import start_logging
from serving.metrics.publisher import MetricsPublisher
from serving.prompt_stage import PromptStage
from vita_audio.contract.fields import INPUTS


class TritonPythonModel:
    """One request at a time; there are several instances, so that a long clip does not hold up the others."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        self._calls = ModelCalls()
        heartbeats = Heartbeats.serve(args["model_name"], args["model_instance_name"])
        self._stage = PromptStage.serve(args["model_instance_name"], self._calls.ask_speech_tokenizer, heartbeats)
        self._metrics = MetricsPublisher(self._stage.recorder, self._stage.measure, heartbeats)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self._metrics.close()

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            inputs = {spec.name: read(request, spec.name) for spec in INPUTS}
            start = self._stage.prepare(inputs, request.request_id())
            return pb_utils.InferenceResponse(self._calls.tensors(start))
        except Exception as error:  # noqa: BLE001 - becomes the answer
            self._stage.refusals.count(error)
            return error_response(error)
