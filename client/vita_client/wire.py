"""The KServe v2 messages of one stream: a request to send, and responses read into events. No network in here.

Outputs are looked up by name (their order changes from run to run of the server, docs/triton.md).
"""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2

from vita_audio.contract.fields import ENSEMBLE, INPUTS, OUTPUTS, Output
from vita_audio.contract.messages import Status
from vita_client.errors import BadResponse
from vita_client.events import Event, Pcm, PromptIds, StatusUpdate, TextDelta, TokensDelta
from vita_client.request import Request

_TEXT, _TOKENS, _PCM, _STATUS, _PROMPT = OUTPUTS
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
    sent = InferResult(response)
    events: list[Event] = []
    if (prompt := _array(sent, _PROMPT)) is not None and prompt.size:
        events.append(PromptIds(tuple(prompt.tolist())))
    if text := _string(sent, _TEXT):
        events.append(TextDelta(text))
    if (tokens := _array(sent, _TOKENS)) is not None and tokens.size:
        events.append(TokensDelta(tuple(tokens.tolist())))
    if (pcm := _array(sent, _PCM)) is not None and pcm.size:
        events.append(Pcm(pcm))
    if (status := _string(sent, _STATUS)) is not None:
        events.append(StatusUpdate(_status(status)))
    return Response(tuple(events), final)


def _array(sent: InferResult, output: Output) -> NDArray[Any] | None:
    """One output, None when it was not sent; outputs that the contract does not know are not looked at."""
    tensor = sent.get_output(output.name)
    if tensor is None:
        return None
    if tensor.datatype != _wire_type(output.datatype) or len(tensor.shape) != 1:
        shown = f"{tensor.datatype} {list(tensor.shape)}"
        raise BadResponse(f"output {output.name} is {shown}, the contract says {output.datatype} {list(output.shape)}")
    try:
        return sent.as_numpy(output.name)
    except (ValueError, struct.error) as error:
        raise BadResponse(
            f"output {output.name}: contents and shape {list(tensor.shape)} do not fit ({error})"
        ) from error


def _string(sent: InferResult, output: Output) -> str | None:
    """The string of an output of one string."""
    values = _array(sent, output)
    try:
        return None if values is None else values.item().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadResponse(f"output {output.name} is not valid UTF-8 at byte {error.start}") from error
    except (ValueError, AttributeError) as error:
        raise BadResponse(f"output {output.name} is not one string ({error})") from error


def _status(text: str) -> Status:
    """STATUS as the shared type; fields that a newer server adds are dropped."""
    try:
        return Status(**{key: value for key, value in json.loads(text).items() if key in _STATUS_FIELDS})
    except (ValueError, TypeError, AttributeError) as error:
        raise BadResponse(f"STATUS is not readable: {text[:80]!r} ({error})") from error
