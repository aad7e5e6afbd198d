"""Tensors, sealed messages, errors and calls in the terms of Triton, for the adapters in `model_repository/`. Runs
inside Triton's Python stubs only.

Nothing may be raised out of `execute`: the caller would see a traceback, and the reply would not say what to do.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - else the stub imports it at the first request, which then costs 30 ms (docs/triton.md)
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import triton_python_backend_utils as pb_utils  # exists in the stub only
from numpy.typing import NDArray

from serving.heartbeat import end_process
from serving.seal import MAX_AGE_S, MAX_BYTES, REFUSAL, Seal
from serving.settings import ServingSettings
from vita_audio.contract.errors import (
    BadMessage,
    EngineError,
    InvalidRequest,
    ServerFull,
    ServerStopping,
    ServerUnhealthy,
    VitaError,
    from_wire,
    to_wire,
)
from vita_audio.contract.fields import OUTPUTS
from vita_audio.contract.messages import Cancel, Message, Probe, Released, Start, decode, encode

if TYPE_CHECKING:  # of audio_decoder alone: the other models do not load its modules
    from vita_audio.decoding.served_stream import DecodedChunk

#: The flag of the last response to a request of a decoupled model.
FINAL: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

#: The outputs of the ensemble.
PUBLIC_OUTPUTS = tuple(output.name for output in OUTPUTS)

log = logging.getLogger(__name__)


def read(request: pb_utils.InferenceRequest, name: str) -> NDArray | None:
    """An input as an array (strings as an object array of bytes), None when it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def text_tensor(name: str, text: str) -> pb_utils.Tensor:
    """A STRING[1] tensor."""
    return _bytes_tensor(name, text.encode())


def _bytes_tensor(name: str, value: bytes) -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([value], dtype=np.object_))


def send(sender: pb_utils.InferenceResponseSender, tensors: list[pb_utils.Tensor] | None, final: bool) -> None:
    """One response of a decoupled model; without tensors only the final flag, which no client sees as a response.

    A last response that cannot be sent (shared memory is full) ends the process: Triton takes no second one, and its
    caller would wait for ever.
    """
    flags = FINAL if final else 0
    try:
        if tensors is None:
            sender.send(flags=flags)
        else:
            sender.send(pb_utils.InferenceResponse(tensors), flags=flags)
    except Exception:
        if final:
            log.critical("a last response cannot be sent: this process ends, so that the server is started again")
            end_process()
        raise


def send_chunk(sender: pb_utils.InferenceResponseSender, chunk: DecodedChunk | None) -> None:
    """The outputs of the ensemble as one response, the final flag with the last; None is the flag alone."""
    if chunk is None:
        return send(sender, None, final=True)
    return send(sender, _outputs(chunk), final=chunk.complete)


def _outputs(chunk: DecodedChunk | None) -> list[pb_utils.Tensor]:
    """The outputs of the ensemble; all are empty, STATUS too, for None."""
    ids = ("TOKENS", chunk.tokens if chunk else ()), ("PROMPT", chunk.prompt if chunk else ())
    texts = ("TEXT_DELTA", chunk.text if chunk else ""), ("STATUS", chunk.status.to_json() if chunk else "")
    pcm = chunk.pcm if chunk else np.zeros(0, np.int16)
    numbers = [pb_utils.Tensor(name, np.asarray(values, np.int32)) for name, values in ids]
    return [*numbers, pb_utils.Tensor("PCM", pcm), *(text_tensor(name, text) for name, text in texts)]


def pass_on(request: pb_utils.InferenceRequest, sender: pb_utils.InferenceResponseSender) -> None:
    """What `ModelCalls.send_to_delivery` sent, as one response: all of it but for whom; of a Probe nothing."""
    values = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in PUBLIC_OUTPUTS}
    tensors = [pb_utils.Tensor(name, value) for name, value in values.items()]
    send(sender, tensors if values["STATUS"].item() else None, final=True)


def error_response(error: Exception) -> pb_utils.InferenceResponse:
    """An error as one line with a code; what was not raised on purpose goes to the log with its traceback."""
    if isinstance(error, (InvalidRequest, BadMessage)):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, (ServerFull, ServerStopping, ServerUnhealthy)):
        code = pb_utils.TritonError.UNAVAILABLE
    else:
        code = pb_utils.TritonError.INTERNAL
    if not isinstance(error, VitaError):
        log.error("request failed", exc_info=error)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(to_wire(error), code))


class ModelCalls:
    """Messages and calls between the models of this server, sealed with its secret (`serving/seal.py`).

    Args:
        once: of a model that accepts each message once.
        most_rows_bytes: of EMBEDDINGS, in a message that is read.

    Raises:
        EngineError: the environment has no secret.
    """

    def __init__(self, once: bool = False, most_rows_bytes: int = 0) -> None:
        self._most_rows_bytes = most_rows_bytes
        self._seal = Seal(ServingSettings.from_environment().secret, once, MAX_BYTES + most_rows_bytes)

    def read(self, request: pb_utils.InferenceRequest) -> Message:
        """The message of MESSAGE, TOKENS and EMBEDDINGS. Raises BadMessage: it is not sealed, or not a message."""
        rows = read(request, "EMBEDDINGS")
        if rows is not None and rows.nbytes > self._most_rows_bytes:
            raise BadMessage(REFUSAL)
        text, tokens = self._open(request, "MESSAGE", "TOKENS", b"" if rows is None else rows.tobytes())
        return decode(text, tokens.reshape(-1).tolist(), rows)

    def tensors(self, message: Message) -> list[pb_utils.Tensor]:
        """MESSAGE and TOKENS of a message, and EMBEDDINGS of a Start."""
        text, ids = encode(message)
        tokens = np.asarray(ids, np.int32)
        rows = [np.ascontiguousarray(message.embeddings, np.float32)] if isinstance(message, Start) else []
        sealed = self._seal.seal(text.encode(), tokens.tobytes(), b"".join(part.tobytes() for part in rows))
        tensors = [_bytes_tensor("MESSAGE", sealed), pb_utils.Tensor("TOKENS", tokens)]
        return [*tensors, *(pb_utils.Tensor("EMBEDDINGS", part) for part in rows)]

    def read_speech(self, request: pb_utils.InferenceRequest) -> NDArray[np.float32]:
        """AUDIO of a call of `ask_speech_tokenizer`, mono [samples] at 16 kHz. Raises BadMessage: it is not sealed.

        It may have waited for long speech of another stream, and no client sees its seal: it may be of any age.
        """
        return self._open(request, "SEAL", "AUDIO", most_age_s=math.inf)[1]

    def ask_speech_tokenizer(self, speech: NDArray[np.float32], output: str = "CODES") -> NDArray:
        """Mono speech [samples] at 16 kHz -> audio codes, or `output` "EMBEDDINGS" of a Plus checkpoint.

        Raises:
            EngineError: it was refused.
        """
        speech = np.ascontiguousarray(speech, np.float32)
        response = pb_utils.InferenceRequest(
            model_name="speech_tokenizer",
            requested_output_names=[output],
            inputs=[
                pb_utils.Tensor("AUDIO", speech),
                _bytes_tensor("SEAL", self._seal.seal(b"", speech.tobytes())),
            ],
        ).exec()
        if response.has_error():
            raise _refused("speech_tokenizer", response)
        return pb_utils.get_output_tensor_by_name(response, output).as_numpy()

    def notify_language_model(self, message: Cancel | Released, model: str = "speech_lm") -> None:
        """Send a message back to the model that generates; returns when it was taken.

        Raises:
            EngineError: it was refused.
        """
        request = pb_utils.InferenceRequest(model_name=model, requested_output_names=[], inputs=self.tensors(message))
        for response in request.exec(decoupled=True):
            if response.has_error():
                raise _refused(model, response)

    def send_to_delivery(
        self,
        send: Callable[[list[pb_utils.Tensor] | None, bool], None],
        content: DecodedChunk | Probe | None,
        final: bool,
    ) -> None:
        """One response of `speech`, which `delivery` gets: the outputs of the ensemble, and whose they are in MESSAGE.

        A Probe has an empty STATUS and nothing else.
        """
        if content is None:
            return send(None, final)
        chunk = None if isinstance(content, Probe) else content
        probe = content if isinstance(content, Probe) else Probe(content.status.stream)
        tokens = np.asarray(chunk.tokens if chunk else (), np.int32)
        sealed = self._seal.seal(encode(probe)[0].encode(), tokens.tobytes())
        return send([_bytes_tensor("MESSAGE", sealed), *_outputs(chunk)], final)

    def _open(
        self,
        request: pb_utils.InferenceRequest,
        sealed: str,
        payload: str,
        rows: bytes = b"",
        most_age_s: float = MAX_AGE_S,
    ) -> tuple[bytes, NDArray]:
        """The text of the input `sealed`, and the input that was sealed with it. Too much is refused uncopied."""
        text, numbers = read(request, sealed), read(request, payload)
        if text is None or numbers is None or text.size != 1 or numbers.nbytes > MAX_BYTES:
            raise BadMessage(REFUSAL)
        return self._seal.open(text.item(), numbers.tobytes(), rows, most_age_s), numbers


def _refused(model: str, response: pb_utils.InferenceResponse) -> EngineError:
    """The error of a called model, in its words: what goes out again has one code, not one inside the other."""
    text = response.error().message()
    wire = from_wire(text)
    return EngineError(f"{model}: {text if wire is None else wire.message}")
