"""A protocol double: a real gRPC server that speaks Triton's streaming protocol and plays scripted streams.

It stands in for Triton in the tests of the client only. What a request's TEXT says picks the script, see `_SCRIPTS`.
Run as a program it prints its port and serves until killed.
"""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from vita_audio.contract.fields import INPUTS, OUTPUTS
from vita_audio.contract.messages import Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

CHUNK_SAMPLES = 2205  # 0.1 s
Inputs = dict[str, object]
Message = service_pb2.ModelStreamInferResponse
_TYPES = {"FP32": "<f4", "INT32": "<i4", "UINT64": "<u8"}


def chunk_pcm(seed: int, index: int) -> np.ndarray:
    """The sound of chunk `index` of the stream with this seed: int16 [CHUNK_SAMPLES]."""
    return np.full(CHUNK_SAMPLES, (100 * seed + index) % 30_000, np.int16)


def chunk_text(seed: int, index: int) -> str:
    return f"s{seed}c{index} é "


def message(
    text: str = "",
    tokens: list[int] | None = None,
    pcm: np.ndarray | None = None,
    status: Status | None = None,
    final: bool = False,
    flip: bool = False,
    prompt: list[int] | None = None,
) -> Message:
    """One response as Triton sends it; `flip` reverses the order of the outputs."""
    outputs: list[tuple[str, str, list[int], bytes]] = []
    if status is not None:
        encoded, spoken = status.to_json().encode(), text.encode()
        tokens, pcm = tokens or [], np.zeros(0, np.int16) if pcm is None else pcm
        outputs = [
            (OUTPUTS[0].name, "BYTES", [1], struct.pack("<I", len(spoken)) + spoken),
            ("TOKENS", "INT32", [len(tokens)], np.asarray(tokens, "<i4").tobytes()),
            ("PCM", "INT16", [len(pcm)], pcm.astype("<i2").tobytes()),
            ("STATUS", "BYTES", [1], struct.pack("<I", len(encoded)) + encoded),
        ]
    if prompt is not None:
        outputs.append(("PROMPT", "INT32", [len(prompt)], np.asarray(prompt, "<i4").tobytes()))
    reply = Message()
    response = reply.infer_response
    response.model_name = "vita_audio"
    response.parameters["triton_final_response"].bool_param = final
    for name, datatype, shape, content in reversed(outputs) if flip else outputs:
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(content)
    return reply


def read_inputs(request: service_pb2.ModelInferRequest) -> Inputs:
    """Inputs by name, checked against the public contract as Triton would."""
    specs = {spec.name: spec for spec in INPUTS}
    inputs: Inputs = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        spec = specs[tensor.name]
        if spec.datatype == "STRING":
            assert tensor.datatype == "BYTES"
            assert list(tensor.shape) == [1]
            assert struct.unpack_from("<I", raw)[0] == len(raw) - 4
            inputs[tensor.name] = raw[4:].decode()
        else:
            assert tensor.datatype == spec.datatype
            values = np.frombuffer(raw, _TYPES[spec.datatype])
            assert list(tensor.shape) == [len(values)]
            inputs[tensor.name] = values if spec.shape == (-1,) else values.item()
    return inputs


class ProtocolDouble(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves scripted streams on a loopback port, a free one unless given, and remembers what it was sent."""

    def __init__(
        self, credentials: grpc.ServerCredentials | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.ready = self.model_ready = True
        #: Whether questions for readiness, of the server or the model, are left without an answer.
        self.silent = self.model_silent = False
        #: The script of a request without TEXT.
        self.spoken = "chunks 3"
        #: The script of a TEXT that names none; None: such a stream breaks.
        self.otherwise: str | None = None
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.inputs: list[Inputs] = []
        #: When each request came (time.monotonic).
        self.at_s: list[float] = []
        #: Of each stream: its headers, and the seconds its deadline left when it came.
        self.headers: list[dict[str, str]] = []
        self.deadlines_s: list[float] = []
        #: Headers of the questions for readiness, and the model they named.
        self.asked: list[tuple[dict[str, str], str]] = []
        self.cancelled = threading.Event()
        #: Streams that are not over.
        self.running = 0
        #: TEXT -> the script of the first request with it, instead of its own.
        self.once: dict[str, str] = {}
        options = [("grpc.http2.min_ping_interval_without_data_ms", 10), ("grpc.max_receive_message_length", -1)]
        self.server = grpc.server(futures.ThreadPoolExecutor(32), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        if credentials is None:
            self.port = self.server.add_insecure_port(f"{host}:{port}")
        else:
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.url = f"localhost:{self.port}"
        self.server.start()

    def ServerReady(self, request: object, context: grpc.ServicerContext) -> service_pb2.ServerReadyResponse:
        self.asked.append((dict(context.invocation_metadata()), ""))
        while self.silent and context.is_active():
            time.sleep(0.01)
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelReadyResponse:
        self.asked.append((dict(context.invocation_metadata()), request.name))
        while self.model_silent and context.is_active():
            time.sleep(0.01)
        return service_pb2.ModelReadyResponse(ready=self.model_ready and request.name == "vita_audio")

    def ModelStreamInfer(
        self, request_iterator: Iterator[service_pb2.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[Message]:
        ended = threading.Event()

        self.running += 1

        def on_end() -> None:
            self.running -= 1
            if not ended.is_set():
                self.cancelled.set()

        if not context.add_callback(on_end):  # it was over before it began
            on_end()
        self.headers.append(dict(context.invocation_metadata()))
        self.deadlines_s.append(context.time_remaining())
        for request in request_iterator:
            assert request.parameters["triton_enable_empty_final_response"].bool_param
            inputs = read_inputs(request)
            self.requests.append(request)
            self.inputs.append(inputs)
            self.at_s.append(time.monotonic())
            script = self._script(inputs)
            word, *arguments = self.once.pop(script, script).split()
            yield from _SCRIPTS[word](inputs, context, *arguments)
        ended.set()

    def _script(self, inputs: Inputs) -> str:
        text = str(inputs.get("TEXT", self.spoken))
        named = text.split()[:1] and text.split()[0] in _SCRIPTS
        return text if named or self.otherwise is None else self.otherwise

    def close(self) -> None:
        self.server.stop(None).wait(5)


def _status(inputs: Inputs, index: int, state: str = "running", reason: str = "", code: str = "") -> Status:
    task, seed = str(inputs.get("TASK", "")), int(inputs.get("SEED", 0))  # type: ignore[call-overload]
    return Status("stream-1", index, state, reason, task, "boost", seed, code=code)  # type: ignore[arg-type]


def chunks(inputs: Inputs, context: grpc.ServicerContext, count: str, delay_s: str = "0") -> Iterator[Message]:
    """`count` chunks of 0.1 s, then an empty final response."""
    seed = int(inputs.get("SEED", 0))  # type: ignore[call-overload]
    for index in range(int(count)):
        if not context.is_active():
            return
        last = index == int(count) - 1
        yield message(
            chunk_text(seed, index),
            [seed % 2**31, index],
            chunk_pcm(seed, index),
            _status(inputs, index, "done" if last else "running", "end_token" if last else ""),
            flip=bool(index % 2),
        )
        time.sleep(float(delay_s))
    yield message(final=True)


def _turn(
    inputs: Inputs, context: grpc.ServicerContext, count: str, delay_s: str = "0", clips: str = "0"
) -> Iterator[Message]:
    """`chunks` of a conversation: the prompt is the history, and the number of turns so far; the answer 0, 1, ...

    The next turn has to bring the last `clips` clips of speech.
    """
    history = np.asarray(inputs.get("HISTORY", ())).tolist()
    prompt = [*history, 1000 + len([token for token in history if token >= 1000])]
    reading = bool(inputs.get("READ_ONLY"))
    for index in range(0 if reading else int(count)):
        last = index == int(count) - 1
        status = replace(_status(inputs, index, "done" if last else "running"), history_clips=int(clips))
        sent = [] if index else prompt
        yield message(chunk_text(0, index), [index], chunk_pcm(0, index), status, prompt=sent)
        time.sleep(float(delay_s))
    if reading:
        yield message(status=_status(inputs, 0, "done", "read"), prompt=prompt)
    yield message(final=True)


def _hang(inputs: Inputs, context: grpc.ServicerContext) -> Iterator[Message]:
    while context.is_active():
        time.sleep(0.01)
    return iter(())


def _one_then(rest: Callable[[Inputs, grpc.ServicerContext], Iterator[Message]]) -> Callable[..., Iterator[Message]]:
    def script(inputs: Inputs, context: grpc.ServicerContext) -> Iterator[Message]:
        yield message("one ", [1], chunk_pcm(0, 0), _status(inputs, 0))
        yield from rest(inputs, context)

    return script


def _fail(inputs: Inputs, context: grpc.ServicerContext) -> Iterator[Message]:
    yield message("two ", [2], chunk_pcm(0, 1), _status(inputs, 1, "failed", "the flow engine\nbroke", "engine_error"))
    yield message(final=True)


def _ends(inputs: Inputs, context: grpc.ServicerContext, state: str, code: str, *reason: str) -> Iterator[Message]:
    """One status: `state`, with a code ("-" is none) and a reason."""
    yield message(status=_status(inputs, 1, state, " ".join(reason), code.removeprefix("-")))
    yield message(final=True)


def _just_ends(inputs: Inputs, context: grpc.ServicerContext) -> Iterator[Message]:
    yield message(final=True)


def _abort(inputs: Inputs, context: grpc.ServicerContext, code: str, *words: str) -> Iterator[Message]:
    context.abort(grpc.StatusCode[code], "in ensemble 'vita_audio', " + " ".join(words))
    return iter(())


def _one_then_abort(inputs: Inputs, context: grpc.ServicerContext, *arguments: str) -> Iterator[Message]:
    yield message("one ", [1], chunk_pcm(0, 0), _status(inputs, 0))
    yield from _abort(inputs, context, *arguments)


def _message_only(inputs: Inputs, context: grpc.ServicerContext, *words: str) -> Iterator[Message]:
    yield Message(error_message=" ".join(words))


def _message_then_end(inputs: Inputs, context: grpc.ServicerContext) -> Iterator[Message]:
    """An error message, and the end of the call some time after it."""
    yield Message(error_message="broke")
    time.sleep(0.3)


def _bad_tail(inputs: Inputs, context: grpc.ServicerContext) -> Iterator[Message]:
    yield message("whole", [1], chunk_pcm(0, 0), _status(inputs, 0, "done", "end_token"))
    yield from _bad_tensor(inputs, context, "pcm")


def _late_abort(inputs: Inputs, context: grpc.ServicerContext) -> Iterator[Message]:
    yield message("whole", [1], chunk_pcm(0, 0), _status(inputs, 0, "done", "end_token"))
    context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")


def _bad_tensor(inputs: Inputs, context: grpc.ServicerContext, which: str) -> Iterator[Message]:
    reply = message("x", [1], chunk_pcm(0, 0), _status(inputs, 0))
    contents = reply.infer_response.raw_output_contents
    if which == "pcm":
        contents[2] = b"\x01"
    elif which == "type":
        reply.infer_response.outputs[2].datatype = "FP32"
    elif which == "utf8":
        contents[0] = b"\x01\x00\x00\x00\xff"
    elif which == "length":
        contents[0] = b"\x09\x00\x00\x00x"
    elif which == "status":
        contents[3] = b"\x02\x00\x00\x00[]"
    elif which == "missing":
        contents.pop()
    yield reply
    yield message(final=True)


def _first_of(script: Callable[..., Iterator[Message]]) -> Callable[..., Iterator[Message]]:
    """The first message of a script; then nothing more, and no end."""

    def first_then_hang(inputs: Inputs, context: grpc.ServicerContext, *arguments: str) -> Iterator[Message]:
        yield from itertools.islice(script(inputs, context, *arguments), 1)
        yield from _hang(inputs, context)

    return first_then_hang


_SCRIPTS: dict[str, Callable[..., Iterator[Message]]] = {
    "chunks": chunks,
    "turn": _turn,
    "hang": _hang,
    "stall": _one_then(_hang),
    "fail": _one_then(_fail),
    "ends": _ends,
    "short": _one_then(_just_ends),
    "abort": _abort,
    "one-then-abort": _one_then_abort,
    "message-only": _message_only,
    "message-then-end": _message_then_end,
    "bad-tail": _bad_tail,
    "late-abort": _late_abort,
    "bad-tensor": _bad_tensor,
    "bad-tensor-then-hang": _first_of(_bad_tensor),
    "ends-then-hang": _first_of(_ends),
}

assert CHUNK_SAMPLES * 10 == OUTPUT_SAMPLE_RATE_HZ

if __name__ == "__main__":
    double = ProtocolDouble()
    print(double.port, flush=True)
    threading.Event().wait()
