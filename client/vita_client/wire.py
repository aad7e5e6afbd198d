"""The KServe v2 messages of one stream: a request to send, and responses read into events. No network in here.

Outputs are looked up by name (their order changes from run to run of the server, docs/triton.md).
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from vita_audio.contract.fields import ENSEMBLE, INPUTS, OUTPUTS
from vita_audio.contract.messages import Status
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client.errors import BadResponse
from vita_client.events import Event, Pcm, StatusUpdate, TextDelta, TokensDelta
from vita_client.request import Request

_TEXT, _TOKENS, _PCM, _STATUS = (spec.name for spec in OUTPUTS)
_DATATYPES = {spec.name: spec.datatype for spec in INPUTS}
_NUMPY_TYPES = {"FP32": "<f4", "INT32": "<i4", "UINT64": "<u8", "INT16": "<i2"}
_STATUS_FIELDS = frozenset(field.name for field in dataclasses.fields(Status))


@dataclass(frozen=True, slots=True)
class Response:
    """One response: its events in order, whether it is the last one, and an error message without a code."""

    events: tuple[Event, ...]
    final: bool
    error: str = ""


def infer_request(request: Request, request_id: str, model: str = ENSEMBLE) -> service_pb2.ModelInferRequest:
    """The message for a checked request; fields that are None are not sent, so the server's defaults hold."""
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    # A decoupled model ends with an empty response that carries nothing but the flag; without this it is not sent.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    speech = request.speech
    values: dict[str, str | float | NDArray[np.float32] | None] = {
        "TEXT": request.text,
        "AUDIO": speech,
        "SAMPLE_RATE": None if speech is None else INPUT_SAMPLE_RATE_HZ,
        "TASK": request.task,
        "MODE": request.mode,
        "MAX_TOKENS": request.max_tokens,
        "TEMPERATURE": request.temperature,
        "TOP_K": request.top_k,
        "TOP_P": request.top_p,
        "REPETITION_PENALTY": request.repetition_penalty,
        "SEED": request.seed,
    }
    for name, value in values.items():
        if value is not None:
            _add_input(message, name, value)
    return message


def _add_input(message: service_pb2.ModelInferRequest, name: str, value: str | float | NDArray[np.float32]) -> None:
    datatype = _DATATYPES[name]
    if isinstance(value, str):
        encoded = value.encode("utf-8")
        message.inputs.add(name=name, datatype="BYTES", shape=[1])
        message.raw_input_contents.append(struct.pack("<I", len(encoded)) + encoded)
        return
    tensor = np.atleast_1d(np.asarray(value, dtype=_NUMPY_TYPES[datatype]))
    message.inputs.add(name=name, datatype=datatype, shape=tensor.shape)
    message.raw_input_contents.append(tensor.tobytes())


def read_response(message: service_pb2.ModelStreamInferResponse) -> Response:
    """Read one message of the stream.

    Raises:
        BadResponse: a tensor or the status does not follow the public contract.
    """
    response = message.infer_response
    final = response.parameters["triton_final_response"].bool_param
    if message.error_message:
        return Response((), final, message.error_message)
    tensors = _tensors(response)
    events: list[Event] = []
    if (text := _string(tensors, _TEXT)) is not None and text:
        events.append(TextDelta(text))
    if (tokens := tensors.get(_TOKENS)) is not None and len(tokens):
        events.append(TokensDelta(tuple(_numbers(_TOKENS, tokens, "INT32").tolist())))
    if (pcm := tensors.get(_PCM)) is not None and len(pcm):
        events.append(Pcm(_numbers(_PCM, pcm, "INT16").astype(np.int16, copy=False)))
    if (status := _string(tensors, _STATUS)) is not None:
        events.append(StatusUpdate(_status(status)))
    return Response(tuple(events), final)


def _tensors(response: service_pb2.ModelInferResponse) -> dict[str, bytes | Sequence[int]]:
    """Outputs by name: raw bytes, or the typed contents that a server may use instead. Unknown outputs are ignored."""
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise BadResponse(f"the server sent {len(response.outputs)} outputs with {len(raw)} contents")
    tensors: dict[str, bytes | Sequence[int]] = {}
    for index, output in enumerate(response.outputs):
        spec = next((spec for spec in OUTPUTS if spec.name == output.name), None)
        if spec is None:
            continue
        expected = "BYTES" if spec.datatype == "STRING" else spec.datatype
        if output.datatype != expected:
            raise BadResponse(f"output {output.name} has type {output.datatype}, the contract says {expected}")
        if raw:
            tensors[output.name] = raw[index]
        elif expected == "BYTES":
            tensors[output.name] = b"".join(
                struct.pack("<I", len(item)) + item for item in output.contents.bytes_contents
            )
        else:
            tensors[output.name] = output.contents.int_contents
    return tensors


def _numbers(name: str, content: bytes | Sequence[int], datatype: str) -> NDArray[np.signedinteger]:
    dtype = np.dtype(_NUMPY_TYPES[datatype])
    if not isinstance(content, bytes):
        return np.asarray(content, dtype=dtype)
    if len(content) % dtype.itemsize:
        raise BadResponse(f"output {name} has {len(content)} bytes, not a multiple of {dtype.itemsize}")
    return np.frombuffer(content, dtype=dtype)


def _string(tensors: dict[str, bytes | Sequence[int]], name: str) -> str | None:
    """The one string of a BYTES tensor, None when the output was not sent."""
    content = tensors.get(name)
    if content is None:
        return None
    assert isinstance(content, bytes)
    if len(content) < 4 or struct.unpack_from("<I", content)[0] != len(content) - 4:
        raise BadResponse(f"output {name} is not one length-prefixed string ({len(content)} bytes)")
    try:
        return content[4:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadResponse(f"output {name} is not valid UTF-8 at byte {error.start}") from error


def _status(text: str) -> Status:
    """STATUS as the shared type; fields that a newer server adds are dropped."""
    try:
        return Status(**{key: value for key, value in json.loads(text).items() if key in _STATUS_FIELDS})
    except (ValueError, TypeError, AttributeError) as error:
        raise BadResponse(f"STATUS is not readable: {text[:80]!r} ({error})") from error
