"""Which machine and which revision a number was measured on; run as a command, all that the project relies on here.

    python -m vita_audio.machine          (one line each; nothing is changed)

Standard library at import; PyTorch is imported only where a caller asks about its device.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch", "triton", "numpy", "safetensors", "tokenizers", "onnxruntime", "tritonclient", "grpcio", "protobuf",
)  # fmt: skip
TOOLS = ("nvidia-smi", "nvidia-cuda-mps-control", "ptxas", "gcc", "ncu")
#: Files that measuring itself writes: they do not make a revision another one.
_MEASURED = (":(exclude)docs/results.md", ":(exclude)benchmarks/results")
_GPU_FIELDS = "name,driver_version,memory.total,memory.free,compute_cap,clocks.max.sm,clocks.max.mem,power.limit"
_TIMEOUT_S = 10.0


def describe_machine() -> str:
    """One line: processor, cores that this process may use, memory, version of Python."""
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {cores} cores, {memory_gib:.0f} GiB, Python {platform.python_version()}"


def describe_device(device: torch.device | None = None) -> str:
    """One line: the device PyTorch computes on (default: all GPUs, or the processor), PyTorch, and the machine."""
    import torch

    versions = f"PyTorch {torch.__version__}"
    kind = device.type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if kind != "cuda":
        return f"{describe_machine()}, {versions}, {torch.get_num_threads()} thread(s)"
    properties = torch.cuda.get_device_properties(device if device is not None else torch.device("cuda"))
    count = f"{torch.cuda.device_count()} x " if device is None and torch.cuda.device_count() > 1 else ""
    return (
        f"{count}{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} "
        f"multiprocessors, {versions}, CUDA {torch.version.cuda}; {describe_machine()}"
    )


def revision(folder: Path = ROOT) -> str:
    """The commit of a checkout, with "-dirty" where a tracked file is changed; "unknown" outside of one."""
    try:
        commit = _output("git", "-C", str(folder), "rev-parse", "--short", "HEAD")
        changed = _output(
            "git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", "--", ".", *_MEASURED
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def gpu_fields(fields: str) -> str:
    """What nvidia-smi says of each GPU, a line each; or why it says nothing. Never raises."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        made = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:  # no driver, or a broken one
        return str(error)
    return made.stdout.strip() or made.stderr.strip() or f"nothing, exit {made.returncode}"


def lines() -> list[str]:
    """Versions, tools and limits of this machine; a driver that does not answer costs its own line only."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    shared = ctypes.util.find_library(f"python{version}")
    folder = sysconfig.get_config_var("LIBDIR")
    found = [
        f"python {platform.python_version()} at {sys.executable}, LIBDIR {folder}",
        f"libpython{version}: {shared or 'not on the loader path'}"
        f", in LIBDIR: {', '.join(sorted(p.name for p in Path(str(folder)).glob('libpython3*.so*'))) or 'none'}",
        f"Python.h: {'there' if header.is_file() else 'missing'} ({header})",
        f"kernel {platform.release()}, glibc {platform.libc_ver()[1]}, {describe_machine()}",
        *(f"{mount}: {_free(mount)}" for mount in ("/dev/shm", "/tmp", str(Path.cwd()))),
        *(f"{package} {_version(package)}" for package in PACKAGES),
        *(f"{tool}: {shutil.which(tool) or 'not on PATH'}" for tool in TOOLS),
    ]
    if shutil.which("nvidia-smi"):
        found.append(f"{_GPU_FIELDS}: {gpu_fields(_GPU_FIELDS)}")
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout.strip()


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
