"""The machine that trains, in words, for records and cards."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine_in_words() -> str:
    """GPUs, or cores and the processor's name, and the version of PyTorch."""
    version = f"PyTorch {torch.__version__}"
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {version}"
    processor, cpuinfo = platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return f"{os.cpu_count()} CPU cores ({processor}), {version}"
