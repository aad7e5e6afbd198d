"""Responses read from bytes: what follows the contract becomes events, all else one BadResponse."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from client_protocol_double import message
from vita_audio.contract.fields import OUTPUTS
from vita_audio.contract.messages import Status
from vita_client import BadResponse, Pcm, StatusUpdate, TextDelta, TokensDelta
from vita_client.wire import read_response

_NAMES = st.sampled_from([*(output.name for output in OUTPUTS), "OF_A_NEWER_SERVER"])
_TENSORS = st.tuples(
    _NAMES,
    st.sampled_from(["BYTES", "INT32", "INT16", "FP32", "NO_SUCH_TYPE"]),
    st.lists(st.integers(-1, 4), max_size=3),
    st.binary(max_size=20),
)


@settings(deadline=None)
@given(tensors=st.lists(_TENSORS, max_size=5), lost=st.integers(0, 2))
def test_any_response_is_events_or_one_bad_response(tensors: list[tuple], lost: int) -> None:
    reply = service_pb2.ModelStreamInferResponse()
    for name, datatype, shape, content in tensors:
        reply.infer_response.outputs.add(name=name, datatype=datatype, shape=shape)
        reply.infer_response.raw_output_contents.append(content)
    del reply.infer_response.raw_output_contents[len(tensors) - lost :]
    try:
        response = read_response(reply)
    except BadResponse:
        return
    assert {type(event) for event in response.events} <= {TextDelta, TokensDelta, Pcm, StatusUpdate}
    for event in response.events:
        if isinstance(event, Pcm):
            assert (event.samples.dtype, event.samples.ndim) == ("int16", 1)


def test_outputs_that_the_contract_does_not_know_are_ignored() -> None:
    reply = message("x", [1], status=Status("s", 0, "done"))
    reply.infer_response.outputs.add(name="OF_A_NEWER_SERVER", datatype="BF16", shape=[1])
    reply.infer_response.raw_output_contents.append(b"\x00\x00")
    assert [type(event) for event in read_response(reply).events] == [TextDelta, TokensDelta, StatusUpdate]


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"stream": "s"}', "{"])
def test_a_status_that_is_none_is_named(text: str) -> None:
    reply = message("x", [1], status=Status("s", 0, "done"))
    encoded = text.encode()
    reply.infer_response.raw_output_contents[3] = struct.pack("<I", len(encoded)) + encoded
    with pytest.raises(BadResponse, match="STATUS"):
        read_response(reply)


def test_fields_of_a_newer_status_are_dropped() -> None:
    reply = message("", [], status=Status("s", 3, "done", code=""))
    encoded = b'{"stream": "s", "index": 3, "state": "done", "mood": "good"}'
    reply.infer_response.raw_output_contents[3] = struct.pack("<I", len(encoded)) + encoded
    assert read_response(reply).events == (StatusUpdate(Status("s", 3, "done")),)
