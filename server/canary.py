"""Asks a model again and again whether it answers: covers what lies between its process and Triton's port.

A Ping takes no slot and no place, and is answered by the loop that serves the streams (`vita_audio/pulse.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.seal import Seal
from vita_audio.contract.messages import Ping, encode

#: Models with loops that can be asked; where language model and decoder are one process, it answers for both.
ASKED, ASKED_IN_ONE = ("speech_lm", "audio_decoder"), ("speech",)

INTERVAL_S = 3.0
#: A call ends after this and is made anew. Much longer than any limit: an answer may be a long engine call away.
CALL_TIMEOUT_S = 300.0
RETRY_S = 0.5


class Canary:
    """Calls `ask` every INTERVAL_S on a thread of its own, and again until it returns without an error.

    Attributes:
        waiting: an answer is due.
        sign: another one with each question and each answer.
    """

    def __init__(self, ask: Callable[[], object], interval_s: float = INTERVAL_S) -> None:
        self._ask, self._interval_s = ask, interval_s
        self.waiting, self._turns = False, 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        self._thread.start()

    @property
    def sign(self) -> int:
        return self._turns

    def close(self) -> None:
        """End the thread, with the call that is under way or before the next."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._turns, self.waiting = self._turns + 1, True
            while not self._answered() and not self._closing.wait(RETRY_S):
                pass
            self._turns, self.waiting = self._turns + 1, False

    def _answered(self) -> bool:
        try:
            self._ask()
        except (grpc.RpcError, OSError, ValueError):  # ValueError: the channel is closed
            return False
        return True


class Pings:
    """Sends sealed Pings to the models of one server.

    Args:
        url: of Triton itself, without TLS.
        secret: of this start of the server.
    """

    def __init__(self, url: str, secret: str) -> None:
        # A proxy of the environment is for other machines.
        self._channel = grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)])
        self._stub, self._seal = service_pb2_grpc.GRPCInferenceServiceStub(self._channel), Seal(secret)

    def ask(self, model: str) -> None:
        """Return when `model` has answered.

        Raises:
            grpc.RpcError: there is no answer.
            OSError: the answer is an error.
        """
        text, _ = encode(Ping())
        request = service_pb2.ModelInferRequest(model_name=model)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        sealed = self._seal.seal(text.encode())
        for name, datatype, shape, raw in (
            ("MESSAGE", "BYTES", [1], len(sealed).to_bytes(4, "little") + sealed),
            ("TOKENS", "INT32", [0], b""),
        ):
            request.inputs.add(name=name, datatype=datatype, shape=shape)
            request.raw_input_contents.append(raw)
        for response in self._stub.ModelStreamInfer(iter([request]), timeout=CALL_TIMEOUT_S):
            if response.error_message:
                raise OSError(response.error_message)

    def close(self) -> None:
        """Break off the calls under way."""
        self._channel.close()
