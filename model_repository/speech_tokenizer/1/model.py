"""Triton adapter of `vita_audio.speech_features` and the speech tokenizer engine: AUDIO (16 kHz) -> CODES."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.adapter import error_response, read, served_engines, start_logging
from serving.warm_up import warm_up_speech
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.registry import open_speech_tokenizer
from vita_audio.speech_features import speech_tokens


class TritonPythonModel:
    """Speech in, audio token codes out."""

    def initialize(self, args: dict[str, str]) -> None:
        start_logging(args["model_name"])
        self._engine = open_speech_tokenizer(served_engines()[2])
        warm_up_speech(self._engine)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        try:
            speech = read(request, "AUDIO")
            # `prompt` has checked this for its own clients; this model can also be called directly.
            if not 0 < speech.size <= MAX_AUDIO_SECONDS * INPUT_SAMPLE_RATE_HZ + 1 or not np.isfinite(speech).all():
                raise InvalidRequest(
                    "AUDIO", f"{speech.size} samples", f"finite, up to {MAX_AUDIO_SECONDS:g} s at 16 kHz"
                )
            codes = speech_tokens(self._engine, speech)
            return pb_utils.InferenceResponse([pb_utils.Tensor("CODES", codes.astype(np.int32))])
        except Exception as error:  # noqa: BLE001 - becomes the answer
            return error_response(error)
