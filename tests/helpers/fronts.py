"""A front with a double of Triton's protocol behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from client_protocol_double import ProtocolDouble
from server.front import Front, find_front
from server.options import ServerOptions
from server.ports import claim_ports, url_of

Stub = service_pb2_grpc.GRPCInferenceServiceStub


class Fronted:
    """A front on a free port, with a protocol double behind it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.log = folder / "log"
        program = find_front("auto")
        assert program is not None
        self.front = Front(program, claim_ports(ServerOptions(grpc_port=0, metrics_port=0, **options)))
        self.socket = self.front.options.grpc_socket
        assert self.socket is not None
        self.port = self.front.options.grpc_port
        self.url = url_of(self.front.options.host, self.port)
        self.triton: ProtocolDouble | None = None

    def open(self) -> Fronted:
        self.front.start(self.log)
        self.begin()
        return self

    def begin(self) -> ProtocolDouble:
        """Start a double where Triton is expected."""
        assert self.socket is not None
        self.triton = ProtocolDouble(host=f"unix:{self.socket.parent}/double")
        (self.socket.parent / "double:0").rename(self.socket)
        return self.triton

    def end(self) -> None:
        """As a Triton that is killed."""
        if self.triton is not None:
            self.triton.close()
            self.triton = None

    def close(self) -> None:
        self.end()
        self.front.stop()


def channel(url: str) -> grpc.Channel:
    return grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)])
