"""A server with known delays: the real streaming protocol, every time and fault decided beforehand. In tests only.

A stream's seed chooses its script. Run as a program it serves on a free port, prints it, and appends what it really
did to a file, one JSON line for each stream: python loadtest_known_server.py SCRIPT LOG.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client_protocol_double import Message, message, read_inputs
from vita_audio.contract.errors import ServerFull, to_wire
from vita_audio.contract.messages import Status

RATE_HZ = 22_050
LOUD = 8_000


@dataclass(frozen=True)
class Script:
    """A stream: (seconds after the last one, seconds of sound) of each chunk, silence at the start, how it ends."""

    chunks: tuple[tuple[float, float], ...]
    silence_s: float = 0.0
    end: str = "done"  # done, failed (after the chunks), full (refused at once)

    @property
    def underruns_s(self) -> list[float]:
        """The breaks a listener hears, if the times are kept."""
        breaks, in_hand = [], self.chunks[0][1]
        for gap_s, sound_s in self.chunks[1:]:
            if gap_s > in_hand + 1e-9:
                breaks.append(gap_s - in_hand)
            in_hand = max(0.0, in_hand - gap_s) + sound_s
        return breaks


def mixed(seed: int) -> Script:
    """First sound after 0.1 to 0.5 s; one in ten refused, one fails, two break off for 0.4 s, two begin silent."""
    kind, first_s = seed % 10, 0.1 + 0.1 * (seed // 10 % 5)
    if kind == 0:
        return Script(((0.0, 0.0),), end="full")
    if kind == 1:
        return Script(((first_s, 0.5),), end="failed")
    if kind in (2, 3):
        return Script(((first_s, 0.3), (0.7, 0.3)))
    if kind in (4, 5):  # the first response is silent throughout
        return Script(((first_s, 0.2), (0.1, 0.6), (0.05, 0.6)), silence_s=0.25)
    return Script(((first_s, 0.6), (0.05, 0.6), (0.05, 0.6)))


def even(seed: int) -> Script:
    """First sound after 0.05 s, always."""
    return Script(((0.05, 0.5), (0.05, 0.5)))


def long(seed: int) -> Script:
    """A chunk of 0.3 s every 0.2 s, for 8 s."""
    return Script(((0.1, 0.5), *((0.2, 0.3),) * 40))


SCRIPTS = {"mixed": mixed, "even": even, "long": long}


class KnownServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, script: str, log: Path) -> None:
        self._script, self._log, self._lock = SCRIPTS[script], log, threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(200))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def ServerReady(self, request: object, context: object) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: object, context: object) -> service_pb2.ModelReadyResponse:
        return service_pb2.ModelReadyResponse(ready=True)

    def ServerMetadata(self, request: object, context: object) -> service_pb2.ServerMetadataResponse:
        return service_pb2.ServerMetadataResponse(name="known", version="1")

    def ModelConfig(self, request: service_pb2.ModelConfigRequest, context: object) -> service_pb2.ModelConfigResponse:
        reply = service_pb2.ModelConfigResponse()
        reply.config.name = request.name
        if request.name == "vita_audio":
            reply.config.ensemble_scheduling.step.add(model_name="speech_lm")
        return reply

    def ModelStreamInfer(
        self, requests: Iterator[service_pb2.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[Message]:
        received_s = time.time()
        inputs: dict[str, Any] = read_inputs(next(requests))
        history = np.asarray(inputs.get("HISTORY", ())).tolist()
        prompt = [*history, 1000]
        if inputs.get("READ_ONLY"):  # speech that goes on is read ahead
            yield message(status=Status("stream", 0, "done", "read"), prompt=prompt)
            return
        seed = int(inputs["SEED"])
        script = self._script(seed)
        sent_s: list[float] = []
        context.add_callback(lambda: self._note(seed, inputs, received_s, sent_s))
        if script.end == "full":
            yield Message(error_message=to_wire(ServerFull(8, 32)))
            return
        due_s, left_silent = received_s, round(script.silence_s * RATE_HZ)
        for index, (gap_s, sound_s) in enumerate(script.chunks):
            due_s += gap_s
            time.sleep(max(0.0, due_s - time.time()))
            pcm = np.full(round(sound_s * RATE_HZ), LOUD, np.int16)
            pcm[:left_silent] = 0
            left_silent = max(0, left_silent - len(pcm))
            last = index == len(script.chunks) - 1
            state = ("done" if script.end == "done" else "failed") if last else "running"
            timings = {"lm": 10.0 * (index + 1), "decode": 20.0 * (index + 1)}
            read = {"prompt_tokens": len(prompt), "cached_tokens": len(history)}
            end = "end_token" if last else ""
            status = Status(f"stream-{seed}", index, state, end, timings_ms=timings, **read)  # type: ignore[arg-type]
            if not context.is_active():
                return
            sent_s.append(time.time())
            yield message("word ", [1, 2], pcm, status, prompt=None if index else prompt)
        yield message(final=True)

    def _note(self, seed: int, inputs: dict[str, Any], received_s: float, sent_s: list[float]) -> None:
        line = {"seed": seed, "task": inputs.get("TASK", "chat"), "received_s": received_s, "sent_s": sent_s}
        with self._lock, self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    print(KnownServer(sys.argv[1], Path(sys.argv[2])).port, flush=True)
    threading.Event().wait()
