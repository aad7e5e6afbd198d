"""Machines with GPUs, for tests on machines without: as data, and as environments of a process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vita_audio.engines.gpu_machine import Gpu, GpuMachine

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 81_559 << 20)
#: The pinned container on one H100.
CONTAINER = GpuMachine((H100,), tensorrt="10.14.1.48", tensorrt_llm="1.2.1", container="tritonserver 26.07")


def with_nvidia_smi(folder: Path, *gpus: Gpu) -> dict[str, str]:
    """An environment whose nvidia-smi lists these GPUs; it refuses any other question than ours."""
    folder.mkdir(exist_ok=True)
    lines = "".join(f"echo '{gpu.name}, {gpu.compute_capability}, {gpu.memory_bytes >> 20}'\n" for gpu in gpus)
    script = folder / "nvidia-smi"
    script.write_text(f'#!/bin/sh\n[ "$1" = "--query-gpu=name,compute_cap,memory.total" ] || exit 1\n{lines}')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def without_onnx(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment whose Python finds none of the ONNX packages."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n")
    return {**environment, "PYTHONPATH": str(folder)}
