"""Command line: ``python -m server`` runs the server in the foreground; Ctrl-C drains and stops it."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from server.errors import CannotStart, refusals_named
from server.front import Front, find_front
from server.memory import take_few_pools
from server.options import FRONT_AUTO, FRONT_OFF, MPS, MPS_AUTO, PROFILES, ServerOptions, TlsFiles
from server.ports import claim_ports, is_loopback
from server.remains import sweep
from server.supervisor import Supervisor
from serving.logs import printable
from serving.settings import DEVICES, GPU_PRIORITIES, SWITCH
from vita_audio.engines.audio_precision import DECODER_PRECISIONS, SPEECH_PRECISIONS
from vita_audio.engines.torch_cuda.kernels.names import AUDIO_NAMES, NAMES


def parse_options(arguments: Sequence[str] | None = None) -> tuple[ServerOptions, Path | None]:
    """Options and log file of a command line."""
    default = ServerOptions()
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Start a Triton server for vita_audio: gRPC on this machine only, unless asked otherwise.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--engines", type=Path, default=default.engines, help="folder made by `python -m build_engines`")
    add("--checkpoint", type=Path, help="refuse engines that were not built from this checkpoint")
    add("--profile", choices=PROFILES, default=default.profile, help="which config.pbtxt of each model is used")
    add(
        "--device",
        choices=DEVICES,
        default=default.device,
        help="where torch_cuda engines run (--profile gpu); cpu is slow and needs no GPU: for trying that profile",
    )
    add(
        "--mps",
        choices=MPS,
        default=default.mps,
        help="models share the GPU through a daemon of NVIDIA's Multi-Process Service of this server's own, instead of "
        f"taking turns (docs/gpu.md, 4); {MPS_AUTO}: where a GPU serves and nvidia-cuda-mps-control is installed",
    )
    add(
        "--one-process",
        action="store_true",
        help="language model and audio decoder in one process, which needs no MPS to use a GPU at the same time",
    )
    add(
        "--gpu-priority",
        choices=GPU_PRIORITIES,
        default=default.gpu_priority,
        help="whose kernels go first under --mps or with --one-process",
    )
    add("--host", default=default.host, help="address of the gRPC and HTTP ports")
    add("--allow-remote", action="store_true", help="needed for a --host that other machines can reach")
    add(
        "--front",
        default=FRONT_AUTO,
        help="HAProxy on the public port, which bounds what callers send (docs/operations.md, Security): "
        f"{FRONT_AUTO} (where it is installed), {FRONT_OFF}, or its path",
    )
    add("--grpc-port", type=int, default=default.grpc_port, help="0 picks a free port")
    add(
        "--http-port",
        type=int,
        help="HTTP is off unless a port is given (docs/triton.md: open advisories on Triton's HTTP server)",
    )
    add("--metrics-port", type=int, default=default.metrics_port, help="Prometheus metrics")
    add("--metrics-host", default=default.metrics_host, help="address of the metrics port; others need --allow-remote")
    add("--slots", type=int, default=default.slots, help="streams that generate at the same time [2 for each core]")
    add(
        "--queue",
        type=int,
        default=default.queue,
        help="streams admitted beyond the slots, queued or only being decoded; the next one is refused as full",
    )
    add(
        "--prefix-cache",
        choices=SWITCH,
        default=default.prefix_cache,
        help="off: callers share nothing, not even the time that a known beginning of a prompt saves",
    )
    add(
        "--kernels-off",
        default=default.kernels_off,
        metavar="NAMES",
        help="kernels of torch_cuda engines whose references run, to find one that is wrong: "
        + ",".join((*NAMES, *AUDIO_NAMES)),
    )
    add(
        "--decoder-precision",
        choices=DECODER_PRECISIONS,
        default=default.decoder_precision,
        help="of the audio decoder of torch_cuda engines; fp16 and bf16: of the flow's estimator",
    )
    add(
        "--speech-precision",
        choices=SPEECH_PRECISIONS,
        default=default.speech_precision,
        help="of what takes speech in on torch_cuda engines; only float32 always gives the reference's tokens",
    )
    add("--threads", type=int, default=default.threads, help="CPU threads of each engine process")
    add("--tls-cert", type=Path, help="PEM certificate: serve gRPC over TLS")
    add("--tls-key", type=Path, help="PEM key of --tls-cert")
    add("--tls-ca", type=Path, help="PEM authority of client certificates: demand one from every client (mutual TLS)")
    add(
        "--exit-timeout",
        dest="exit_timeout_s",
        type=int,
        default=default.exit_timeout_s,
        help="seconds that running streams may take to end",
    )
    add(
        "--memory-limit",
        default=default.memory_limit,
        metavar="SIZE",
        help="a server that holds more is started again at once: a size such as 6GiB, a share such as 90%% of what the "
        "machine, or its control group, has; or off",
    )
    add(
        "--restarts",
        type=int,
        default=default.restarts,
        help="failures in a row after which the server is started again; one more, and this program ends. 0: never",
    )
    add(
        "--stall-timeout",
        dest="stall_timeout_s",
        type=int,
        default=default.stall_timeout_s,
        help="seconds without a sign of life after which a part counts as failed (in an engine call 12 times as long); "
        "0: only its end does",
    )
    add("--log-file", type=Path, help="log of Triton and the models (default: a new file in the temporary folder)")
    add("--log-verbose", type=int, default=default.log_verbose, help="Triton's verbosity")
    given = parser.parse_args(arguments)
    if (given.tls_cert is None) != (given.tls_key is None) or (given.tls_ca and not given.tls_cert):
        parser.error("--tls-cert and --tls-key belong together, and --tls-ca needs both")
    values = vars(given)
    log_file, certificate, key, authority = (values.pop(name) for name in ("log_file", "tls_cert", "tls_key", "tls_ca"))
    return ServerOptions(**values, tls=TlsFiles(certificate, key, authority) if certificate else None), log_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal, or until it fails too often. Returns the exit status: 0 after a drain that lost no stream."""
    options, log_file = parse_options(arguments)
    take_few_pools()
    asked: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP or not asked:  # a terminal that closes sends several
            asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, on_signal)
    try:
        program = find_front(options.front)
        if options.allow_remote and not is_loopback(options.host):
            warning = remote_warning(options, program is not None)
            say(f"WARNING: {options.host} is reachable from other machines. {warning}")
        with refusals_named():
            sweep()  # a HAProxy that a dead server left may have the port
        front = Front(program, claim_ports(options)) if program is not None else None
    except CannotStart as error:
        say(f"cannot start: {error}")
        return 1
    return Supervisor(front.options if front else options, log_file, asked, say, front).run()


def remote_warning(options: ServerOptions, front: bool) -> str:
    """What an operator must know before this server faces a network (docs/triton.md, "Security")."""
    transport = (
        "Clients are not authenticated" if options.tls else "Nothing is encrypted and clients are not authenticated"
    )
    if options.tls and options.tls.client_ca:
        transport = "Clients need a certificate"
    if front:
        return f"{transport}."
    return (
        f"{transport}, nothing bounds what callers send, and one header crashes Triton 24.10: install HAProxy, which "
        "--front auto then uses (docs/operations.md, Security)."
    )


def say(text: str) -> None:
    """One line to the operator, whatever is in the names of files; lost if nobody is there any more to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"vita-audio server: {printable(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
