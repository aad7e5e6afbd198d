"""What a GPU machine has of all that this project relies on there: one line each, nothing is changed.

python -m benchmarks.gpu_environment
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "tokenizers",
    "onnxruntime",
    "tritonclient",
    "grpcio",
    "protobuf",
)
TOOLS = ("nvidia-smi", "nvidia-cuda-mps-control", "ptxas", "gcc", "ncu")
_GPU_FIELDS = "name,driver_version,memory.total,memory.free,compute_cap,clocks.max.sm,clocks.max.mem,power.limit"

_TIMEOUT_S = 10.0


def lines() -> list[str]:
    """Versions, tools and limits of this machine."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    shared = ctypes.util.find_library(f"python{version}")
    folder = sysconfig.get_config_var("LIBDIR")
    found = [
        f"python {platform.python_version()} at {sys.executable}, LIBDIR {folder}",
        f"libpython{version}: {shared or 'not on the loader path'}"
        f", in LIBDIR: {', '.join(sorted(p.name for p in Path(str(folder)).glob('libpython3*.so*'))) or 'none'}",
        f"Python.h: {'there' if header.is_file() else 'missing'} ({header})",
        f"cores {len(os.sched_getaffinity(0))}, kernel {platform.release()}, glibc {platform.libc_ver()[1]}",
        *(f"{mount}: {_free(mount)}" for mount in ("/dev/shm", "/tmp", str(Path.cwd()))),
        *(f"{package} {_version(package)}" for package in PACKAGES),
        *(f"{tool}: {shutil.which(tool) or 'not on PATH'}" for tool in TOOLS),
    ]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader"]
        try:
            made = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
            said = made.stdout.strip() or made.stderr.strip() or f"nothing, exit {made.returncode}"
        except (
            OSError,
            subprocess.TimeoutExpired,
        ) as error:  # a broken driver: the other lines are needed all the more
            said = str(error)
        found.append(f"{_GPU_FIELDS}: {said}")
    return found


def _free(mount: str) -> str:
    if not Path(mount).is_dir():
        return "missing"
    usage = shutil.disk_usage(mount)
    return f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    print("\n".join(lines()))
