"""Nonsense to the public model and to those behind it: each request ends with one line, and no other stream notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import grpc
from tritonclient.grpc import service_pb2_grpc

from benchmarks.faults.bench import Bench
from benchmarks.faults.nonsense import Message, inner_message, public_message
from benchmarks.faults.rows import HUNG, Row, counted, telling, unfair
from benchmarks.faults.seen import Seen, Watch
from benchmarks.server_process import ServerProcess
from loadtest.clock import now_s
from loadtest.driver import DONE
from vita_client.errors import from_message

_TIMEOUT_S = 15.0
#: Outputs that hold what a model computed.
_DATA = ("TOKENS", "PCM", "CODES")
#: One caller beside it shows whether others notice.
_CALLERS = 1


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    yield "nonsense to the public model", lambda bench: nonsense(bench, "the public model", public_message)
    yield "nonsense to the inner models", lambda bench: nonsense(bench, "the inner models", inner_message)


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended, as the client reads it. `code`: "answered", that of an error, or gRPC's in lower case.
    `finals`: last responses.
    `data`: bytes of tensors with content."""

    code: str
    texts: tuple[str, ...]
    finals: int
    data: int
    seconds: float


def nonsense(bench: Bench, whom: str, make: Callable[[Random], Message]) -> Row:
    """`sizes["fuzz"]` requests, one after the other."""
    random = bench.random(whom)
    with bench.server() as server:
        before = _pids(server)
        with Watch(server.url, _CALLERS, bench.patience) as watch:
            watch.wait_running(60 * bench.patience)
            watch.mark()
            answers: list[Answer] = []
            with grpc.insecure_channel(server.url, options=[("grpc.enable_http_proxy", 0)]) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for _ in range(round(bench.sizes["fuzz"])):
                    answers.append(ask(stub, make(random), _TIMEOUT_S * bench.patience))
        seen, after = watch.seen(), _pids(server)
        left, wrong = bench.ending(server)
    wrong = [*judged(answers, seen, whom), *wrong]
    if before != after:
        wrong.append("a process of the server was started again")
    figures = {"slowest_s": max(each.seconds for each in answers), "codes": dict(Counter(e.code for e in answers))}
    callers = f"{counted(each.code for each in answers)}; a caller beside: {counted(seen.codes)}"
    fault = f"{len(answers)} messages of nonsense to {whom}"
    return Row("fuzz", fault, callers, failed=seen.failed, left=left, wrong=tuple(wrong), figures=figures)


def judged(answers: list[Answer], seen: Seen, whom: str) -> list[str]:
    """Complaints."""
    wrong = unfair(seen.codes, frozenset({DONE})) + telling(text for each in answers for text in each.texts)
    hung = [each for each in answers if each.code == HUNG]
    lost = [each for each in answers if each.code in ("unavailable", "cancelled", "unknown")]
    more = [each for each in answers if each.finals > 1]
    served = [each for each in answers if each.data] if whom == "the inner models" else []
    for found, what in (
        (hung, "did not end"), (lost, "lost the connection"), (more, "had more than one last response"),
        (served, "were answered with data"),
    ):  # fmt: skip
        if found:
            wrong.append(f"{len(found)} requests {what}")
    return wrong


def ask(stub: service_pb2_grpc.GRPCInferenceServiceStub, message: Message, timeout_s: float) -> Answer:
    """Send one message as a stream and read it to its end."""
    texts: list[str] = []
    finals = data = 0
    code, begin_s = "answered", now_s()
    try:
        for response in stub.ModelStreamInfer(iter((message,)), timeout=timeout_s):
            if response.error_message:
                seen = from_message(response.error_message, "the server")
                code, texts = seen.code, [*texts, str(seen)]
            finals += response.infer_response.parameters["triton_final_response"].bool_param
            tensors = zip(response.infer_response.outputs, response.infer_response.raw_output_contents, strict=False)
            data += sum(len(raw) for output, raw in tensors if output.name in _DATA)
    except grpc.RpcError as error:
        code = error.code().name.lower()
        texts.append(error.details() or "")
    return Answer(code, tuple(texts), finals, data, now_s() - begin_s)


def _pids(server: ServerProcess) -> set[int]:
    return {process.pid for each in server.processes().values() for process in each}
