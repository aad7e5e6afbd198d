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

from vita_audio.contract.fields import ENSEMBLE, INPUTS, OUTPUTS, Output
from vita_audio.contract.messages import Status
from vita_client.errors import BadResponse
from vita_client.events import Event, Pcm, StatusUpdate, TextDelta, TokensDelta
from vita_client.request import Request

_TEXT, _TOKENS, _PCM, _STATUS = OUTPUTS
_OUTPUTS = {output.name: output for output in OUTPUTS}
_STATUS_FIELDS = frozenset(field.name for field in dataclasses.fields(Status))


@dataclass(frozen=True, slots=True)
class Response:
    """One response: its events in order, whether it is the last one, and an error message without a code."""

    events: tuple[Event, ...]
    final: bool
    error: str = ""


def infer_request(request: Request, request_id: str, model: str = ENSEMBLE) -> service_pb2.ModelInferRequest:
    """The message for a checked request; for fields that are not sent the server's defaults hold."""
    message = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    # A decoupled model ends with an empty response that carries nothing but the flag; without this it is not sent.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for field in INPUTS:
        if field.name not in request.values:
            continue
        value = request.values[field.name]
        if isinstance(value, str):
            encoded, shape = value.encode("utf-8"), [1]
            content = struct.pack("<I", len(encoded)) + encoded
        else:
            tensor = np.atleast_1d(np.asarray(value, dtype=field.dtype))
            shape, content = list(tensor.shape), tensor.tobytes()
        message.inputs.add(name=field.name, datatype=_wire_type(field.datatype), shape=shape)
        message.raw_input_contents.append(content)
    return message


def _wire_type(datatype: str) -> str:
    """gRPC's name of a type of config.pbtxt."""
    return "BYTES" if datatype == "STRING" else datatype


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
    if text := _string(tensors, _TEXT):
        events.append(TextDelta(text))
    if len(tokens := _numbers(tensors, _TOKENS)):
        events.append(TokensDelta(tuple(tokens.tolist())))
    if len(pcm := _numbers(tensors, _PCM)):
        events.append(Pcm(pcm.astype(np.int16, copy=False)))
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
        if output.name not in _OUTPUTS:
            continue
        expected = _wire_type(_OUTPUTS[output.name].datatype)
        if output.datatype != expected:
            raise BadResponse(f"output {output.name} has type {output.datatype}, the contract says {expected}")
        contents = output.contents
        if raw:
            tensors[output.name] = raw[index]
        elif expected == "BYTES":
            tensors[output.name] = b"".join(struct.pack("<I", len(item)) + item for item in contents.bytes_contents)
        else:
            tensors[output.name] = contents.int_contents
    return tensors


def _numbers(tensors: dict[str, bytes | Sequence[int]], output: Output) -> NDArray[np.signedinteger]:
    """The numbers of an output, none when it was not sent."""
    content = tensors.get(output.name, b"")
    if not isinstance(content, bytes):
        return np.asarray(content, dtype=output.dtype)
    if len(content) % output.dtype.itemsize:
        raise BadResponse(f"output {output.name}: {len(content)} bytes are no multiple of {output.dtype.itemsize}")
    return np.frombuffer(content, dtype=output.dtype)


def _string(tensors: dict[str, bytes | Sequence[int]], output: Output) -> str | None:
    """The one string of a BYTES tensor, None when the output was not sent."""
    content = tensors.get(output.name)
    if content is None:
        return None
    assert isinstance(content, bytes)
    if len(content) < 4 or struct.unpack_from("<I", content)[0] != len(content) - 4:
        raise BadResponse(f"output {output.name} is not one length-prefixed string ({len(content)} bytes)")
    try:
        return content[4:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadResponse(f"output {output.name} is not valid UTF-8 at byte {error.start}") from error


def _status(text: str) -> Status:
    """STATUS as the shared type; fields that a newer server adds are dropped."""
    try:
        return Status(**{key: value for key, value in json.loads(text).items() if key in _STATUS_FIELDS})
    except (ValueError, TypeError, AttributeError) as error:
        raise BadResponse(f"STATUS is not readable: {text[:80]!r} ({error})") from error
