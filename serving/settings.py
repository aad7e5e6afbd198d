"""Settings that the server hands to the model processes through environment variables, defined once.

Triton starts one process per Python model instance; the environment is the only channel that reaches all of them
before they load. `server/` writes it, the adapters in `model_repository/` read it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args, get_type_hints

from vita_audio.contract.errors import EngineError
from vita_audio.engines.audio_precision import FLOAT32, SPEECH_PRECISIONS, TF32, check_precision
from vita_audio.engines.manifest import Manifest, load_manifest
from vita_audio.engines.source import EngineSource
from vita_audio.engines.torch_cuda.kernels.names import kernel_names

#: Where torch_cuda engines may run; the CPU is for trying the GPU profile on a machine without a GPU.
DEVICES = ("cuda:0", "cpu")
SWITCH = ("on", "off")
#: Models whose kernels go first on a GPU that both have at a time (`serving/gpu_share.py`), or neither.
EQUAL, *_ = GPU_PRIORITIES = ("equal", "speech_lm", "audio_decoder")


def default_threads() -> int:
    """Half of the usable cores for each engine process: the language model and the audio decoder run side by side."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def default_slots() -> int:
    """Two streams for each usable core, at least four: what a CPU answers in time (docs/results.md)."""
    return max(4, 2 * len(os.sched_getaffinity(0)))


def default_queue() -> int:
    """Few may wait: a caller who is refused at once can ask another server, one who waits long has hung up."""
    return max(1, default_slots() // 4)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """What every model process needs.

    Args:
        engines: folder made by ``python -m build_engines`` (holds ``manifest.json``).
        slots: streams that generate at the same time (each owns a KV cache).
        queue: streams beyond the slots that are taken, waiting for one or for their sound to be made; one more is
            answered "server is full".
        threads: CPU threads of each engine process.
        device: one of DEVICES; CPU engines and TensorRT engines ignore it.
        admission: file of this server's `serving.admission.AdmissionRecord`.
        heartbeats: folder of this server's `serving.heartbeat.Heartbeats`.
        prefix_cache: whether prompts go on from slots that hold their beginning: one of SWITCH.
        restarts: how often this server was started again because a part of it had failed.
        secret: of this start of the server, for `serving.seal.Seal`; shown nowhere.
        kernels_off: kernels of torch_cuda engines that run as their references, names between commas.
        gpu_priority: whose kernels go first: one of GPU_PRIORITIES.
        decoder_precision, speech_precision: number formats of torch_cuda's audio engines (`EngineSource`).
    """

    engines: Path
    slots: int = field(default_factory=default_slots)
    queue: int = field(default_factory=default_queue)
    threads: int = field(default_factory=default_threads)
    device: str = DEVICES[0]
    admission: Path | None = None
    heartbeats: Path | None = None
    prefix_cache: str = SWITCH[0]
    restarts: int = 0
    secret: str = field(default="", repr=False)
    kernels_off: str = ""
    gpu_priority: str = EQUAL
    decoder_precision: str = TF32
    speech_precision: str = FLOAT32

    def to_environment(self) -> dict[str, str]:
        """The variables of one server's model processes. OMP_NUM_THREADS keeps numpy's and torch's pools small too."""
        settings = {_variable(entry.name): getattr(self, entry.name) for entry in fields(self)}
        return {
            **{name: str(value) for name, value in settings.items() if value is not None},
            "OMP_NUM_THREADS": str(self.threads),
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServingSettings:
        """Read what `to_environment` wrote; only the engine folder has no default.

        Raises:
            EngineError: VITA_ENGINES is not set (the model repository was not started by ``python -m server``).
        """
        names = [entry.name for entry in fields(cls) if environment.get(_variable(entry.name))]
        if "engines" not in names:
            raise EngineError("VITA_ENGINES is not set: start the server with `python -m server`, or set it")
        kinds = get_type_hints(cls)  # int, str, Path, or Path | None
        read = {name: next(iter(get_args(kinds[name])), kinds[name]) for name in names}
        return cls(**{name: kind(environment[_variable(name)]) for name, kind in read.items()})


def _variable(name: str) -> str:
    return f"VITA_{name.upper()}"


def served_engines() -> tuple[ServingSettings, Manifest, EngineSource]:
    """What every stage opens: the server's settings, the manifest, and where the engines are.

    Raises:
        EngineError: the server was started without engines, or their manifest cannot be read.
    """
    settings = ServingSettings.from_environment()
    manifest = load_manifest(settings.engines)
    off = kernel_names(settings.kernels_off)
    source = EngineSource(
        settings.engines,
        manifest,
        settings.threads,
        settings.device,
        off,
        check_precision("VITA_DECODER_PRECISION", settings.decoder_precision),
        check_precision("VITA_SPEECH_PRECISION", settings.speech_precision, SPEECH_PRECISIONS),
    )
    return settings, manifest, source
