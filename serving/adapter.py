"""Tensors, messages, errors and calls in the terms of Triton, for the adapters in `model_repository/`. Runs inside
Triton's Python stubs only.

Nothing may be raised out of `execute`: the caller would see a traceback, and the reply would not say what to do.
"""

from __future__ import annotations

import logging

import numpy as np
import triton_python_backend_utils as pb_utils  # exists in the stub only
from numpy.typing import NDArray

from vita_audio.contract.errors import (
    EngineError,
    InvalidRequest,
    ServerFull,
    ServerStopping,
    VitaError,
    from_wire,
    to_wire,
)
from vita_audio.contract.messages import Cancel, Message, Released, decode, encode

#: The flag of the last response to a request of a decoupled model.
FINAL: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

log = logging.getLogger(__name__)


def start_logging(model: str) -> None:
    """Send the log of this model process to the server's log, under the model's name."""
    logging.basicConfig(level=logging.INFO, format=f"%(levelname)s {model}: %(message)s")


def read(request: pb_utils.InferenceRequest, name: str) -> NDArray | None:
    """An input as an array (strings as an object array of bytes), None when it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def read_message(request: pb_utils.InferenceRequest) -> Message:
    """The message of MESSAGE and TOKENS.

    Raises:
        BadMessage: what is wrong with it.
    """
    text, tokens = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("MESSAGE", "TOKENS"))
    return decode(text.reshape(-1)[0], tokens.reshape(-1).tolist())


def message_tensors(message: Message) -> list[pb_utils.Tensor]:
    """MESSAGE and TOKENS of a message."""
    text, tokens = encode(message)
    return [text_tensor("MESSAGE", text), pb_utils.Tensor("TOKENS", np.asarray(tokens, np.int32))]


def text_tensor(name: str, text: str) -> pb_utils.Tensor:
    """A STRING[1] tensor."""
    return pb_utils.Tensor(name, np.array([text.encode("utf-8")], dtype=np.object_))


def send(sender: pb_utils.InferenceResponseSender, tensors: list[pb_utils.Tensor] | None, final: bool) -> None:
    """One response of a decoupled model; without tensors only the final flag, which no client sees as a response."""
    flags = FINAL if final else 0
    if tensors is None:
        sender.send(flags=flags)
    else:
        sender.send(pb_utils.InferenceResponse(tensors), flags=flags)


def error_response(error: Exception) -> pb_utils.InferenceResponse:
    """An error as one line with a code; what was not raised on purpose goes to the log with its traceback."""
    if isinstance(error, InvalidRequest):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, (ServerFull, ServerStopping)):
        code = pb_utils.TritonError.UNAVAILABLE
    else:
        code = pb_utils.TritonError.INTERNAL
    if not isinstance(error, VitaError):
        log.error("request failed", exc_info=error)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(to_wire(error), code))


def notify_language_model(message: Cancel | Released) -> None:
    """Send a message from `audio_decoder` back to `speech_lm`; returns when it was taken.

    Raises:
        EngineError: it was refused.
    """
    request = pb_utils.InferenceRequest(
        model_name="speech_lm", requested_output_names=[], inputs=message_tensors(message)
    )
    for response in request.exec(decoupled=True):
        if response.has_error():
            raise _refused("speech_lm", response)


def ask_speech_tokenizer(speech: NDArray[np.float32]) -> NDArray[np.int32]:
    """Mono speech [samples] at 16 kHz -> audio codes.

    Raises:
        EngineError: it was refused.
    """
    response = pb_utils.InferenceRequest(
        model_name="speech_tokenizer",
        requested_output_names=["CODES"],
        inputs=[pb_utils.Tensor("AUDIO", np.ascontiguousarray(speech, np.float32))],
    ).exec()
    if response.has_error():
        raise _refused("speech_tokenizer", response)
    return pb_utils.get_output_tensor_by_name(response, "CODES").as_numpy()


def _refused(model: str, response: pb_utils.InferenceResponse) -> EngineError:
    """The error of a called model, in its words: what goes out again has one code, not one inside the other."""
    text = response.error().message()
    wire = from_wire(text)
    return EngineError(f"{model}: {text if wire is None else wire.message}")
