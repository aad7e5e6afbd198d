"""Command line and environment of the tritonserver process."""

from __future__ import annotations

import os
import secrets
from dataclasses import fields
from pathlib import Path

from server.locate import Triton
from server.options import ServerOptions
from server.ports import address_of
from serving.settings import ServingSettings

#: Administration that no client of this project needs (docs/triton.md, "Security"). Health, metadata, inference, model
#: configuration and statistics stay open: clients and benchmarks read them.
RESTRICTED = "shared-memory,model-repository,trace,logging"
#: Triton opens a restricted protocol to requests with a header of this name. Names of gRPC metadata are lower case, so
#: this one cannot be sent: the lock has no key, and it does not matter who can read the command line.
LOCK = "NoKey"

#: First size and growth step of the shared memory between Triton and each model process. A region grows on demand:
#: measured, a 120 s clip at 192 kHz (92 MB) passes. It never shrinks, so the first size is small.
SHARED_MEMORY_BYTES = 8 << 20

#: Memory that is given back to the system when it is free. Arrays of a step are smaller and stay at hand.
LARGE_ALLOCATION_BYTES = 4 << 20

#: What Triton waits for when it ends by itself because a model did not load: time for the others to unload.
TRITON_EXIT_TIMEOUT_S = 5

#: A client that vanished without closing its connection (pulled cable) is noticed after these two, in ms.
KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000


def triton_arguments(options: ServerOptions, triton: Triton, backends: Path, shared_memory_prefix: str) -> list[str]:
    """The command, program first. Ports must be claimed (no zeros).

    Args:
        shared_memory_prefix: begins the names of this server's regions in /dev/shm.
    """
    arguments = [
        str(triton.binary),
        f"--model-repository={options.repository}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHARED_MEMORY_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        "--disable-auto-complete-config",
        "--model-control-mode=none",
        f"--exit-timeout-secs={TRITON_EXIT_TIMEOUT_S}",
        f"--log-verbose={options.log_verbose}",
        f"--grpc-address={_grpc_address(options)}",
        f"--grpc-port={options.grpc_port}",
        # Triton (2.51) else keeps the messages of 8 calls for their successors, each as large as its largest was.
        "--grpc-infer-allocation-pool-size=0",
        f"--grpc-keepalive-time={KEEPALIVE_TIME_MS}",
        f"--grpc-keepalive-timeout={KEEPALIVE_TIMEOUT_MS}",
        f"--grpc-restricted-protocol={RESTRICTED}:{LOCK}={secrets.token_urlsafe(24)}",
        f"--allow-http={_flag(options.http_port is not None)}",
        f"--metrics-address={_http_address(options.metrics_host)}",
        f"--metrics-port={options.metrics_port}",
        "--metrics-config=histogram_latencies=true",
        # Triton itself stays off the GPU: all tensors between models are in host memory. Its GPU metrics need a DCGM of
        # the driver's age, which the wheel does not bring; NVIDIA's dcgm-exporter reports the same numbers.
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        "--cuda-memory-pool-byte-size=0:0",
    ]
    if options.http_port is not None:
        arguments += [
            f"--http-address={_http_address(options.host)}",
            f"--http-port={options.http_port}",
            f"--http-restricted-api={RESTRICTED}:{LOCK}={secrets.token_urlsafe(24)}",
        ]
    if options.profile != "cpu":
        arguments.append(f"--model-config-name={options.profile}")
    if options.tls is not None and options.grpc_socket is None:
        arguments += [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={options.tls.certificate}",
            f"--grpc-server-key={options.tls.key}",
        ]
        if options.tls.client_ca is not None:
            arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={options.tls.client_ca}"]
    return arguments


def serving_settings(options: ServerOptions, folder: Path, secret: str, restarts: int = 0) -> ServingSettings:
    """What the model processes of one start need.

    Args:
        folder: private to this start.
        secret: seals the messages between its models.
        restarts: failed starts and servers in whose place this one is.
    """
    asked = {each.name: getattr(options, each.name) for each in fields(ServingSettings) if hasattr(options, each.name)}
    of_this_start = {
        "engines": options.engines.absolute(),
        "admission": folder / "admission",
        "heartbeats": folder / "heartbeats",
        "restarts": restarts,  # the option of that name is how many there may be
        "secret": secret,
    }
    return ServingSettings(**asked | of_this_start)


def triton_environment(settings: ServingSettings, stub_python: Path, library_folders: list[Path]) -> dict[str, str]:
    """Environment of Triton and of the model processes it starts.

    Args:
        settings: of the model processes.
        stub_python: the ``bin`` folder made by `assemble_python`.
        library_folders: where Triton's libraries and the shared Python library lie.
    """
    libraries = [str(folder) for folder in library_folders]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {
        # The processes have some 200 threads, and glibc would give each few of them an arena of its own. Two keep
        # tritonserver some 4 MiB smaller. Long speech goes back to the system: else glibc keeps up to 32 MiB of each.
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": str(LARGE_ALLOCATION_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(LARGE_ALLOCATION_BYTES),
        **os.environ,
        **settings.to_environment(),
        "LD_LIBRARY_PATH": ":".join([*libraries, *([inherited] if inherited else [])]),
        "PATH": f"{stub_python}:{os.environ.get('PATH', os.defpath)}",
    }


def _grpc_address(options: ServerOptions) -> str:
    """Triton (2.51) writes a colon and the port behind it, also behind the path of a unix socket."""
    if options.grpc_socket is None:
        address = address_of(options.host)
        return f"[{address}]" if ":" in address else address
    return f"unix:{options.grpc_socket}".removesuffix(f":{options.grpc_port}")


def _http_address(host: str) -> str:
    address = address_of(host)
    return f"ipv6:{address}" if ":" in address else address


def _flag(value: bool) -> str:
    return "true" if value else "false"
