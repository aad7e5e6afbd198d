"""Settings of a server: ports, engines, limits, TLS files. One frozen object."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from serving.settings import DEVICES, EQUAL, SWITCH, default_queue, default_slots, default_threads
from vita_audio.engines.audio_precision import FLOAT32, TF32

ROOT = Path(__file__).resolve().parent.parent

LOOPBACK = "127.0.0.1"
#: Any free port; the launcher picks it and prints it.
FREE_PORT = 0

DEFAULT_GRPC_PORT = 8001
DEFAULT_METRICS_PORT = 8002
DEFAULT_EXIT_TIMEOUT_S = 30
DEFAULT_RESTARTS = 5
DEFAULT_MEMORY_LIMIT = "90%"
DEFAULT_STALL_TIMEOUT_S = 10

PROFILES = ("cpu", "gpu")

#: Values of `--mps`: a daemon of the server's own, none, or one where a GPU serves and the program is installed.
MPS_ON, MPS_OFF, MPS_AUTO = MPS = ("on", "off", "auto")

#: Values of `--front` that are no path: HAProxy where it is installed, none.
FRONT_AUTO, FRONT_OFF = "auto", "off"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for the gRPC port. With `client_ca` the server also demands a certificate from clients (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """All settings of one server.

    Args:
        engines: folder with the engines and their ``manifest.json``.
        checkpoint: if given, the manifest must have been built from exactly this checkpoint.
        repository: Triton model repository.
        host: address of the gRPC (and HTTP) port; anything but loopback needs `allow_remote`.
        grpc_port, metrics_port: 0 picks a free one.
        metrics_host: address of the metrics port; anything but loopback needs `allow_remote`.
        http_port: None leaves HTTP off (docs/triton.md, "Security"); 0 picks a free one.
        profile: ``cpu`` reads each model's ``config.pbtxt``, ``gpu`` its ``configs/gpu.pbtxt`` where there is one.
        device: where the torch_cuda engines of the ``gpu`` profile run: ``cuda:0``, or ``cpu`` (float32, slow) to try
            that profile on a machine without a GPU.
        front: what takes the public port before Triton (`server/front.py`): ``off``, ``auto`` or the path of HAProxy.
            `python -m server` reads it; a `TritonServer` itself has none.
        grpc_socket: if given, Triton's own gRPC endpoint, in place of `host` and `grpc_port`, which a front has.
        mps: whether the models share the GPU through an MPS daemon of this server (`server/mps.py`): one of MPS.
        gpu_priority: whose kernels go first under MPS or in one process (`ServingSettings`).
        one_process: language model and audio decoder share a process, and so a CUDA context.
        slots, queue: streams that generate, and that are taken beyond them (`ServingSettings`).
        prefix_cache: ``off`` reads every prompt from its beginning, whatever an ended stream has left.
        kernels_off: kernels of torch_cuda engines that run as their references, names between commas.
        decoder_precision, speech_precision: number formats of torch_cuda's audio engines
            (`vita_audio/engines/audio_precision.py`).
        threads: CPU threads of each engine process.
        exit_timeout_s: how long running streams may go on after a stop was asked for.
        memory_limit: what the server may hold before it is started again (`server/memory.py`): a size, a share of what
            the machine or its control group has, ``off``. `python -m server` reads it.
        restarts: failures in a row after which `python -m server` starts the server again.
        stall_timeout_s: how long a thread or an answer of it may take until that counts as a failure; 0: for ever.
        start_timeout_s: how long loading and warming up may take; None is 2 minutes, with GPU engines 30.
    """

    engines: Path = ROOT / "engines" / "cpu"
    checkpoint: Path | None = None
    repository: Path = ROOT / "model_repository"
    host: str = LOOPBACK
    grpc_port: int = DEFAULT_GRPC_PORT
    http_port: int | None = None
    metrics_port: int = DEFAULT_METRICS_PORT
    metrics_host: str = LOOPBACK
    profile: str = "cpu"
    device: str = DEVICES[0]
    mps: str = MPS_OFF
    one_process: bool = False
    gpu_priority: str = EQUAL
    front: str = FRONT_OFF
    grpc_socket: Path | None = None
    slots: int = field(default_factory=default_slots)
    queue: int = field(default_factory=default_queue)
    prefix_cache: str = SWITCH[0]
    kernels_off: str = ""
    decoder_precision: str = TF32
    speech_precision: str = FLOAT32
    threads: int = field(default_factory=default_threads)
    log_verbose: int = 0
    tls: TlsFiles | None = None
    allow_remote: bool = False
    exit_timeout_s: int = DEFAULT_EXIT_TIMEOUT_S
    memory_limit: str = DEFAULT_MEMORY_LIMIT
    restarts: int = DEFAULT_RESTARTS
    stall_timeout_s: int = DEFAULT_STALL_TIMEOUT_S
    start_timeout_s: float | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the engines compute on a GPU."""
        return self.profile == "gpu" and self.device != "cpu"

    @property
    def triton_url(self) -> str:
        """Where Triton itself answers, as gRPC writes it; without TLS where a front encrypts."""
        if self.grpc_socket is not None:
            return f"unix:{self.grpc_socket}"
        return f"[{self.host}]:{self.grpc_port}" if ":" in self.host else f"{self.host}:{self.grpc_port}"

    @property
    def start_limit_s(self) -> float:
        """GPU engines are tens of gigabytes, and each shape of a step may be captured before the first stream."""
        if self.start_timeout_s is not None:
            return self.start_timeout_s
        return 1800.0 if self.profile == "gpu" else 120.0
