"""Whether a server can take requests, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from vita_client.channel import Connection
from vita_client.errors import from_rpc


@dataclass(frozen=True, slots=True)
class Health:
    """`server`: it answers and is ready. `model`: the ensemble is loaded and ready. `reason` is empty when both are."""

    server: bool
    model: bool
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.server and self.model

    @classmethod
    def from_answers(cls, connection: Connection, server: bool, model: bool) -> Health:
        reason = ""
        if not server:
            reason = f"the server at {connection.url} is not ready"
        elif not model:
            reason = f"the server at {connection.url} has no model {connection.model} ready"
        return cls(server, model, reason)

    @classmethod
    def from_error(cls, connection: Connection, error: grpc.RpcError) -> Health:
        timeout_s = connection.connect_timeout_s
        reason = from_rpc(error.code(), error.details(), url=connection.url, timeout_s=timeout_s, responses=0)
        return cls(False, False, str(reason))
