"""Triton adapter of `serving.prompt_stage`: public inputs -> PROMPT_IDS, SETTINGS; asks speech_tokenizer."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.adapter import error_response, read, start_logging, text_tensor
from serving.full_notice import FullNotice
from serving.metrics.publisher import MetricsPublisher
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.prompt_stage import PromptStage
from serving.settings import ServingSettings
from vita_audio.contract.errors import EngineError, ServerStopping
from vita_audio.contract.fields import INPUTS
from vita_audio.engines.manifest import load_manifest
from vita_audio.text.tokenizer import TextTokenizer


class TritonPythonModel:
    """One request at a time; there are several instances, so that a long clip does not hold up the others."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        self._settings = ServingSettings.from_environment()
        engines = self._settings.engines
        tokenizer = TextTokenizer(engines / "tokenizer.json")
        self._notice = FullNotice(self._settings.full_file)
        self._stage = PromptStage(tokenizer, load_manifest(engines).limits, self._speech_codes)
        self._stage.prepare({"TEXT": "warm-up"})
        self._running = 0
        self._worker, self._recorder = args["model_instance_name"], Recorder()
        self._refusals = Refusals(self._recorder, "prompt")
        self._metrics = MetricsPublisher(self._recorder, self._measure)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        self._running = len(requests)
        answers = [self._answer(request) for request in requests]
        self._running = 0
        return answers

    def finalize(self) -> None:
        self._metrics.close()

    def _measure(self) -> None:
        self._recorder.set("vita_streams", self._running, stage="prompt", state="running", worker=self._worker)

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            if self._settings.draining:
                raise ServerStopping
            prompt = self._stage.prepare({spec.name: read(request, spec.name) for spec in INPUTS})
            return pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor("PROMPT_IDS", np.asarray(prompt.ids, np.int32)),
                    text_tensor("SETTINGS", prompt.settings.to_json()),
                ]
            )
        except Exception as error:  # noqa: BLE001 - becomes the answer
            self._refusals.count(error)
            return error_response(error)

    def _speech_codes(self, speech: np.ndarray) -> np.ndarray:
        """Mono speech [samples] at 16 kHz -> audio codes, unless the server is full."""
        self._notice.check()
        return _ask_speech_tokenizer(speech)


def _ask_speech_tokenizer(speech: np.ndarray) -> np.ndarray:
    """Mono speech [samples] at 16 kHz -> audio codes, by a call to the speech_tokenizer model."""
    response = pb_utils.InferenceRequest(
        model_name="speech_tokenizer",
        requested_output_names=["CODES"],
        inputs=[pb_utils.Tensor("AUDIO", np.ascontiguousarray(speech, np.float32))],
    ).exec()
    if response.has_error():
        raise EngineError(f"speech tokenizer: {response.error().message()}")
    return pb_utils.get_output_tensor_by_name(response, "CODES").as_numpy()
