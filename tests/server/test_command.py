"""What the launcher hands to tritonserver and to its model processes: every value in its own place."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from server.command import (
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    SHARED_MEMORY_BYTES,
    serving_settings,
    triton_arguments,
    triton_environment,
)
from server.locate import Triton
from server.options import ServerOptions, TlsFiles
from serving.settings import ServingSettings

#: Every number another one.
OPTIONS = ServerOptions(
    engines=Path("/engines"),
    repository=Path("/models"),
    grpc_port=11,
    metrics_port=12,
    metrics_host="127.0.0.2",
    slots=21,
    queue=22,
    prefix_cache="off",
    kernels_off="gate",
    decoder_precision="bf16",
    speech_precision="fp16",
    gpu_priority="speech_lm",
    threads=23,
    device="cpu",
)


def environment(monkeypatch: pytest.MonkeyPatch, **inherited: str) -> dict[str, str]:
    for name in ("LD_LIBRARY_PATH", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    settings = serving_settings(OPTIONS, Path("/own"), "a secret", restarts=24)
    return triton_environment(settings, Path("/stub/bin"), [Path("/l1"), Path("/l2")])


def test_the_model_processes_read_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read = ServingSettings.from_environment(environment(monkeypatch))
    admission, heartbeats = Path("/own/admission"), Path("/own/heartbeats")
    kept = (admission, heartbeats, "off", 24, "a secret", "gate", "speech_lm", "bf16", "fp16")
    assert read == ServingSettings(Path("/engines"), 21, 22, 23, "cpu", *kept)
    assert len(set(map(str, (getattr(read, field.name) for field in fields(read))))) == len(fields(read))
    assert environment(monkeypatch)["OMP_NUM_THREADS"] == "23"


def test_libraries_and_programs_of_the_stub_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = environment(monkeypatch, PATH="/usr/bin", HOME="/home/x")
    assert (made["LD_LIBRARY_PATH"], made["PATH"], made["HOME"]) == ("/l1:/l2", "/stub/bin:/usr/bin", "/home/x")
    assert made["MALLOC_ARENA_MAX"] == "2"
    made = environment(monkeypatch, LD_LIBRARY_PATH="/mine", MALLOC_ARENA_MAX="7", VITA_SLOTS="99")
    assert (made["LD_LIBRARY_PATH"], made["MALLOC_ARENA_MAX"], made["VITA_SLOTS"]) == ("/l1:/l2:/mine", "7", "21")


def test_settings_survive_the_environment() -> None:
    assert ServingSettings.from_environment({"VITA_ENGINES": "/e", "VITA_SLOTS": "3"}) == replace(
        ServingSettings(Path("/e")), slots=3
    )


def test_addresses_ports_and_folders_of_the_command_line() -> None:
    triton = Triton("test", Path("/t"), Path("/b"), Path("/s"), ())
    line = triton_arguments(replace(OPTIONS, http_port=13, log_verbose=3), triton, Path("/backends"), "prefix")
    assert line[0] == "/t"
    given = dict(part.removeprefix("--").split("=", 1) for part in line[1:] if "=" in part)
    wanted = {
        "model-repository": "/models", "backend-directory": "/backends", "grpc-port": "11", "metrics-port": "12",
        "http-port": "13", "grpc-address": "127.0.0.1", "http-address": "127.0.0.1", "metrics-address": "127.0.0.2",
        "log-verbose": "3", "grpc-keepalive-time": str(KEEPALIVE_TIME_MS),
        "grpc-keepalive-timeout": str(KEEPALIVE_TIMEOUT_MS), "model-control-mode": "none", "allow-http": "true",
    }  # fmt: skip
    assert {name: given[name] for name in wanted} == wanted
    assert "model-config-name" not in given
    assert KEEPALIVE_TIME_MS > KEEPALIVE_TIMEOUT_MS
    assert f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY_BYTES}" in line
    assert f"--backend-config=python,shm-growth-byte-size={SHARED_MEMORY_BYTES}" in line
    assert "--backend-config=python,shm-region-prefix-name=prefix" in line


def test_certificate_key_and_authority_are_not_mixed_up() -> None:
    triton = Triton("test", Path("/t"), Path("/b"), Path("/s"), ())
    tls = TlsFiles(Path("/cert"), Path("/key"))
    line = triton_arguments(replace(OPTIONS, tls=tls), triton, Path("/backends"), "prefix")
    assert line[-3:] == ["--grpc-use-ssl=true", "--grpc-server-cert=/cert", "--grpc-server-key=/key"]
    mutual = replace(OPTIONS, tls=replace(tls, client_ca=Path("/ca")))
    assert triton_arguments(mutual, triton, Path("/backends"), "prefix")[-2:] == [
        "--grpc-use-ssl-mutual=true",
        "--grpc-root-cert=/ca",
    ]
