"""What a run was made with: machine, versions, server, command, seed. A number without these is worth nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from loadtest.options import ROOT, Settings
from vita_audio.contract.fields import ENSEMBLE
from vita_audio.machine import describe_machine, revision
from vita_client import Connection

_PACKAGES = ("locust", "gevent", "grpcio", "tritonclient", "hdrhistogram", "numpy")
_ASK_S = 5.0


def manifest(settings: Settings, command: str) -> dict[str, Any]:
    """Everything, as plain data."""
    return {
        "command": short(command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "note": settings.note,
        "generator_machine": f"{describe_machine()}, load average {os.getloadavg()[0]:.1f} at the start",
        "versions": {"python": platform.python_version(), "revision": revision()} | {p: version(p) for p in _PACKAGES},
        "server": _server(settings.url),
        "settings": plain(asdict(settings)),
    }


def plain(value: Any) -> Any:
    """Contents of dataclasses in the types of JSON."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return short(str(value))
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def short(text: str) -> str:
    """Paths below the repository without the way to it: reports are shown around."""
    return text.replace(f"{ROOT}{os.sep}", "")


def _server(url: str) -> dict[str, Any]:
    """The server's own description: version, and each model's version, instances and parameters."""
    with grpc.insecure_channel(url, options=Connection(url).options()) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            server = stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=_ASK_S)
            config = stub.ModelConfig(service_pb2.ModelConfigRequest(name=ENSEMBLE), timeout=_ASK_S).config
            steps = [step.model_name for step in config.ensemble_scheduling.step]
            models = {
                name: MessageToDict(
                    stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=_ASK_S).config,
                    preserving_proto_field_name=True,
                )
                for name in dict.fromkeys(steps)
            }
        except grpc.RpcError as error:
            return {"url": url, "error": f"{error.code().name}: {error.details()}"}
    shown = ("backend", "max_batch_size", "instance_group", "parameters", "model_transaction_policy")
    kept = {name: {key: config[key] for key in shown if key in config} for name, config in models.items()}
    return {"url": url, "name": server.name, "version": server.version, "models": kept}
