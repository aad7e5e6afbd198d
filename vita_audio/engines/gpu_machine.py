"""What this machine offers engines: GPUs (from nvidia-smi), TensorRT, TensorRT-LLM, container. No PyTorch here."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib import metadata

NONE = "none"
_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: `compute_capability` as "9.0"."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class GpuMachine:
    """What TensorRT engines depend on. Versions are "none" where a package is not installed.

    Attributes:
        gpus: as CUDA numbers them; empty where there is no driver.
        container: release of the Triton container, "none" outside of one.
    """

    gpus: tuple[Gpu, ...]
    tensorrt: str
    tensorrt_llm: str
    container: str

    @property
    def compute_capability(self) -> str:
        """Of the first GPU, which is the one that serves."""
        return self.gpus[0].compute_capability if self.gpus else NONE


def find_machine() -> GpuMachine:
    """Look at this machine; never raises."""
    release = os.environ.get("NVIDIA_TRITON_SERVER_VERSION")  # set in every Triton container
    return GpuMachine(
        gpus=_visible(_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")),
        tensorrt=_version("tensorrt"),
        tensorrt_llm=_version("tensorrt_llm"),
        container=f"tritonserver {release}" if release else NONE,
    )


def _gpus() -> tuple[Gpu, ...]:
    try:
        made = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        rows = [[field.strip() for field in line.split(",")] for line in made.stdout.splitlines() if line.strip()]
        return tuple(Gpu(name, capability, int(mebibytes) << 20) for name, capability, mebibytes in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _visible(gpus: tuple[Gpu, ...], wanted: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; names other than numbers leave all."""
    if wanted is None or not all(part.strip().isdigit() for part in wanted.split(",") if part.strip()):
        return gpus
    return tuple(gpus[int(part)] for part in wanted.split(",") if part.strip() and int(part) < len(gpus))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NONE
