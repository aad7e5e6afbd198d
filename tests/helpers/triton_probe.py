"""What tests ask of a running server: its gauges, its calls in flight, raw requests without our client."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.launch import TritonServer
from server.metrics import read_metrics
from serving.seal import Seal
from vita_audio.contract.fields import ENSEMBLE, INPUTS
from vita_audio.contract.messages import Message, encode
from vita_client import Client

#: Fields of a request whose stream takes many seconds.
LONG: dict[str, Any] = {"text": "hello " * 100, "task": "tts", "mode": "vanilla", "max_tokens": 1024}
LONG |= {"temperature": 1.5, "seed": 3}
#: Mode -> number of the request with which `long_request` begins: the one that is long on the tests' engines.
_TRIED_FIRST = {"vanilla": 94}
_LONG: dict[tuple[str, int], int] = {}  # what it found
NUMPY_TYPES = {"FP32": np.float32, "INT32": np.int32, "UINT64": np.uint64, "INT64": np.int64}


def metrics(server: TritonServer) -> dict[str, float]:
    """Our own metrics: ``name{labels}`` -> value."""
    return read_metrics("127.0.0.1", server.options.metrics_port)


def live(server: TritonServer) -> dict[str, float]:
    """Streams that hold a slot, a place or a decoder state; requests that wait for the decoder."""
    return {
        key: value
        for key, value in metrics(server).items()
        if key.startswith(("vita_streams{", "vita_places_taken", "vita_decoder_waiting"))
    }


def wait_idle(server: TritonServer, timeout_s: float = 10.0) -> dict[str, float]:
    """`live` once all is zero twice in a row (metrics are refreshed five times a second), else when time is up."""
    deadline, idle = time.monotonic() + timeout_s, 0
    while idle < 2 and time.monotonic() < deadline:
        time.sleep(0.25)
        idle = idle + 1 if not any(live(server).values()) else 0
    return live(server)


def in_flight(server: TritonServer, timeout_s: float = 10.0) -> float:
    """Requests that Triton has taken and not ended, which it never forgets; waits for none."""
    deadline = time.monotonic() + timeout_s
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while True:
            models = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10).model_stats
            counts = {
                model.name: (model.inference_stats.success.count, model.inference_stats.fail.count) for model in models
            }
            # Each runs `prompt` once; Triton (2.51) counts an ensemble that fails twice.
            open_ = sum(counts["prompt"]) - counts[ENSEMBLE][0] - counts[ENSEMBLE][1] / 2
            if open_ == 0 or time.monotonic() > deadline:
                return open_
            time.sleep(0.1)


def long_request(client: Client, mode: str = "vanilla", at_least: int = 900) -> dict[str, Any]:
    """Fields of a request that gives many tokens: greedy without a penalty, random weights like to go in circles.

    A search of a hundred streams: what it finds is kept, since all tests of a run have the same engines.
    """
    if (mode, at_least) not in _LONG:
        first = _TRIED_FIRST.get(mode, 0)
        for number in (first, *range(200)):
            if len(client.collect(**_greedy(number, mode)).tokens) >= at_least:
                _LONG[mode, at_least] = number
                break
        else:
            raise AssertionError(f"no long stream found in mode {mode}")
    return _greedy(_LONG[mode, at_least], mode)


def _greedy(number: int, mode: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"text": f"Number {number}.", "task": "tts", "mode": mode, "max_tokens": 900}
    return fields | {"timeout_s": 120, "temperature": 0.0, "repetition_penalty": 1.0}


def tensor(name: str, datatype: str, values: Iterable[object], shape: Iterable[int] | None = None) -> tuple:
    """(name, datatype, shape, raw bytes) of an input, as it goes over the wire."""
    listed = list(values)
    if datatype == "BYTES":
        encoded = [value if isinstance(value, bytes) else str(value).encode() for value in listed]
        raw = b"".join(struct.pack("<I", len(value)) + value for value in encoded)
    else:
        raw = np.asarray(listed, NUMPY_TYPES[datatype]).tobytes()
    return name, datatype, list(shape or [len(listed)]), raw


def public(**inputs: object) -> list[tuple]:
    """Inputs of the public contract by name; scalars become tensors of one element."""
    types = {spec.name: "BYTES" if spec.datatype == "STRING" else spec.datatype for spec in INPUTS}
    return [
        tensor(name, types[name], value if isinstance(value, (list, np.ndarray)) else [value])
        for name, value in inputs.items()
    ]


def sealed(server: TritonServer, message: Message) -> list[tuple]:
    """MESSAGE and TOKENS of a message between the models of `server`."""
    text, ids = encode(message)
    tokens = tensor("TOKENS", "INT32", ids)
    return [tensor("MESSAGE", "BYTES", [Seal(server.secret).seal(text.encode(), tokens[3])]), tokens]


def message(inputs: Iterable[tuple], model: str = ENSEMBLE) -> service_pb2.ModelInferRequest:
    """A request of raw tensors; nothing is checked."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, datatype, shape, raw in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


class Probe:
    """A gRPC connection that sends what it is told."""

    def __init__(self, server: TritonServer) -> None:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(server.grpc_url, options=unlimited)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def stream(self, inputs: Iterable[tuple], model: str = ENSEMBLE, timeout_s: float = 30.0) -> Iterator:
        """All responses of one streamed request."""
        return self.stub.ModelStreamInfer(iter([message(inputs, model)]), timeout=timeout_s)

    def error(self, inputs: Iterable[tuple], model: str = ENSEMBLE) -> str:
        """The error text of a streamed request; the stream is read to its end (see docs of `client`)."""
        texts = [response.error_message for response in self.stream(inputs, model)]
        assert [text for text in texts if text], "no error came"
        return next(text for text in texts if text)

    def code(self, inputs: Iterable[tuple], model: str) -> tuple[grpc.StatusCode, str]:
        """gRPC status of a single (not streamed) request to one model."""
        try:
            self.stub.ModelInfer(message(inputs, model), timeout=30)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def close(self) -> None:
        self.channel.close()
