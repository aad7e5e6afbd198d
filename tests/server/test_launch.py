"""What a server hands to tritonserver when it starts it, without starting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from server import launch
from server.launch import TritonServer
from server.options import ServerOptions
from server.remains import MARK


def test_triton_gets_its_settings_its_python_and_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}

    class Process:
        exit_code = None

        def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, prefix: str) -> None:
            started.update(arguments=arguments, environment=environment, log=log, prefix=prefix)

        def end(self) -> None:
            started["ended"] = True

    monkeypatch.setattr(launch, "GuardedProcess", Process)
    server = TritonServer(ServerOptions(engines=tmp_path, grpc_port=0, metrics_port=0), tmp_path / "log")
    server._launch()
    try:
        own = Path("/dev/shm") / f"{started['prefix']}server"
        environment, arguments = started["environment"], started["arguments"]
        assert environment["PATH"].startswith(f"{own}/python/bin:")
        assert Path(environment["VITA_ENGINES"]).resolve() == tmp_path
        assert environment["VITA_SECRET"] == server.secret
        assert all(Path(folder).is_dir() for folder in environment["LD_LIBRARY_PATH"].split(":"))
        assert Path(arguments[0]).name == "tritonserver"
        assert f"--grpc-port={server.options.grpc_port}" in arguments
        assert started["log"] == tmp_path / "log"
        assert MARK not in environment  # the guarded process adds it
    finally:
        server.kill()
    assert started["ended"]
    assert not own.exists()
