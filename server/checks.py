"""What is checked before Triton starts; every failure is one clear line that says what to do."""

from __future__ import annotations

import ssl
from pathlib import Path

from server.errors import CannotStart
from server.memory import parse_limit
from server.mps import find_mps
from server.options import MPS, MPS_OFF, PROFILES, ServerOptions, TlsFiles
from server.ports import is_loopback
from serving.settings import DEVICES, EQUAL, GPU_PRIORITIES
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.audio_precision import SPEECH_PRECISIONS, check_precision
from vita_audio.engines.manifest import check_manifest, schedule_fields
from vita_audio.engines.registry import check_slots
from vita_audio.engines.torch_cuda.kernels.names import kernel_names


def check_options(options: ServerOptions) -> None:
    """Everything that can be known before a port is claimed or a process started.

    Raises:
        CannotStart: on the first thing that is wrong.
    """
    check_numbers(options)
    parse_limit(options.memory_limit)
    check_remote(options)
    check_repository(options.repository)
    find_mps(options)
    check_engines(options.engines, options.checkpoint, options.profile, options.slots, options.device)
    if options.tls is not None:
        check_tls(options.tls)


def check_numbers(options: ServerOptions) -> None:
    """Profile, device, MPS, kernels and counts are in range."""
    for flag, name, known in (
        ("--profile", options.profile, PROFILES),
        ("--device", options.device, DEVICES),
        ("--mps", options.mps, MPS),
        ("--gpu-priority", options.gpu_priority, GPU_PRIORITIES),
    ):
        if name not in known:
            raise CannotStart(f"{flag}: {name!r} is not valid: choose one of {', '.join(known)}")
    if options.gpu_priority != EQUAL and options.mps == MPS_OFF and not options.one_process:
        raise CannotStart(
            f"--gpu-priority: {options.gpu_priority} needs a GPU used at the same time: add --mps on, or --one-process"
        )
    try:
        check_precision("--decoder-precision", options.decoder_precision)
        check_precision("--speech-precision", options.speech_precision, SPEECH_PRECISIONS)
    except EngineError as error:
        raise CannotStart(str(error)) from None
    try:
        kernel_names(options.kernels_off)
    except EngineError as error:
        raise CannotStart(f"--kernels-off: {error}") from None
    for flag, value, least in (
        ("--slots", options.slots, 1),
        ("--queue", options.queue, 0),
        ("--threads", options.threads, 1),
        ("--exit-timeout", options.exit_timeout_s, 0),
        ("--restarts", options.restarts, 0),
        ("--stall-timeout", options.stall_timeout_s, 0),
    ):
        if value < least:
            raise CannotStart(f"{flag}: {value} is not valid: at least {least}")
    if options.stall_timeout_s == 1:
        raise CannotStart(
            "--stall-timeout: 1 is not valid: a healthy thread shows itself once a second; 0 or at least 2"
        )


def check_remote(options: ServerOptions) -> None:
    """Listening beyond this machine is asked for explicitly, never by accident."""
    for flag, host in (("--host", options.host), ("--metrics-host", options.metrics_host)):
        if not options.allow_remote and not is_loopback(host, flag):
            raise CannotStart(
                f"{flag}: {host} can be reached from other machines: add --allow-remote if that is meant "
                "(and --tls-cert/--tls-key: without them speech and text travel in the clear)"
            )


def check_repository(repository: Path) -> None:
    """The model repository is there."""
    if not any(repository.glob("*/config.pbtxt")):
        raise CannotStart(
            f"{repository} is not a model repository (no */config.pbtxt): start from a checkout of this project"
        )


def check_engines(
    engines: Path, checkpoint: Path | None, target: str, slots: int = 1, device: str = DEVICES[0]
) -> None:
    """The engines are built, complete, and fit this installation, the slots and (if named) the checkpoint.

    The manifest's check reads every engine file once and names the first field that does not fit.
    """
    try:
        manifest = check_manifest(engines, checkpoint, target, device=device, schedule=schedule_fields(DecoderConfig()))
        if manifest.gpu is not None:
            check_slots(manifest.gpu, slots)
    except EngineError as error:
        raise CannotStart(str(error)) from None


def check_tls(files: TlsFiles) -> None:
    """Certificate and key are readable PEM files that belong together; so is the clients' authority."""
    for flag, path in (("--tls-cert", files.certificate), ("--tls-key", files.key), ("--tls-ca", files.client_ca)):
        if path is not None and not path.is_file():
            raise CannotStart(f"{flag}: {path} is not a file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")  # never ask on the terminal
    except (ssl.SSLError, OSError) as error:
        raise CannotStart(
            f"--tls-cert {files.certificate} and --tls-key {files.key}: "
            f"not a PEM certificate and its unencrypted key ({error})"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise CannotStart(f"--tls-ca: {files.client_ca} is not a PEM certificate ({error})") from None
