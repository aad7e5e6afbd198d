"""Finds a tritonserver with its Python backend: the nvidia-pytriton wheel of this environment, else one on PATH."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from server.errors import CannotStart

#: The stub links the shared Python library under this name; the wheel bundles one of its own for 3.13.
STUB_PYTHON = re.compile(rb"libpython3(?:-[0-9a-f]+)?\.(\d+)\.so\.1\.0")
#: A folder beside an unpacked server: a Python with its shared library (deploy/offline).
CARRIED_PYTHON = "shared_python"


@dataclass(frozen=True, slots=True)
class Triton:
    """One installed server.

    `python_backend` holds ``libtriton_python.so``; `stub` is the process that runs ``model.py`` with this very Python;
    `library_folders` must be on LD_LIBRARY_PATH.
    """

    origin: str
    binary: Path
    python_backend: Path
    stub: Path
    library_folders: tuple[Path, ...]


def find_triton() -> Triton:
    """The server to start, complete with a stub for the running Python.

    Raises:
        CannotStart: no server is installed, or none of its stubs fits the running Python.
    """
    triton = _in_wheel() or _on_path()
    if triton is None:
        raise CannotStart(
            "tritonserver was found neither in the nvidia-pytriton wheel nor on PATH: "
            "install it with `pip install nvidia-pytriton==0.7.0`, or run inside a Triton container"
        )
    return triton


def find_shared_python(stub: Path) -> Path | None:
    """The folder of the shared Python library that `stub` links; None when the loader finds it without help.

    Raises:
        CannotStart: the stub is for another Python, or this Python has no shared library (a static build).
    """
    match = STUB_PYTHON.search(stub.read_bytes())
    if match is None:
        raise CannotStart(f"{stub} names no shared Python library: it is not a stub of Triton's Python backend")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = f"3.{int(match.group(1))}"
    if needed != running:
        raise CannotStart(
            f"the Python stub of this Triton is for Python {needed}, but Python {running} is running: "
            f"use Python {needed}, or install nvidia-pytriton==0.7.0 (stubs for 3.8 to 3.13)"
        )
    if b"-" in match.group(0):
        return None
    library = match.group(0).decode()
    folder = _library_folder(library)
    if folder is not None or _loader_has_python():
        return folder
    carried = carried_python()
    if carried is not None:
        return carried / "lib"
    raise CannotStart(
        f"{library} was not found: {sys.executable} is a static build, and Triton's stub needs the shared library; "
        f"use a Python built with --enable-shared (uv and python.org builds are; Debian: install libpython{running}), "
        "or bring one along (--with-libpython of deploy/offline)"
    )


def carried_python() -> Path | None:
    """The prefix of the Python that came with an unpacked server; None if there is none or the running one can do.

    Its library and its standard library belong together, so the stub takes both from there.
    """
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = f"libpython{running}.so.1.0"
    if _library_folder(library) is not None or _loader_has_python():
        return None
    prefixes = [Path(entry).absolute() / CARRIED_PYTHON for entry in sys.path]
    return next((prefix for prefix in prefixes if (prefix / "lib" / library).is_file()), None)


def _library_folder(library: str) -> Path | None:
    """Where the running Python keeps its shared library."""
    folders = [Path(str(sysconfig.get_config_var("LIBDIR") or "")), Path(sys.base_prefix) / "lib"]
    return next((folder for folder in folders if (folder / library).is_file()), None)


def _loader_has_python() -> bool:
    return ctypes.util.find_library(f"python{sys.version_info.major}.{sys.version_info.minor}") is not None


def _in_wheel() -> Triton | None:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    home = package / "tritonserver"
    binary = home / "bin" / "tritonserver"
    if not binary.is_file():
        return None
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = home / "python_backend_stubs"
    stub = stubs / running / "triton_python_backend_stub"
    if not stub.is_file():
        have = ", ".join(sorted((entry.name for entry in stubs.iterdir()), key=lambda name: int(name.split(".")[1])))
        raise CannotStart(f"nvidia-pytriton has no Python stub for Python {running} (it has {have}): use one of these")
    for program in (binary, stub):
        if not os.access(program, os.X_OK):
            raise CannotStart(
                f"{program} is not executable, as after unpacking without file modes: run `chmod +x` on it"
            )
    check_numpy(importlib.metadata.version("numpy"))
    return Triton(
        origin=f"nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}",
        binary=binary,
        python_backend=home / "backends" / "python",
        stub=stub,
        library_folders=(package.parent / "nvidia_pytriton.libs",),
    )


def check_numpy(version: str) -> None:
    """The wheel's stubs are compiled against NumPy 1: with NumPy 2 strings arrive garbled and the model crashes (seen).

    Raises:
        CannotStart: NumPy 2 or later is installed.
    """
    if int(version.split(".")[0]) >= 2:
        raise CannotStart(f"NumPy {version} does not work with nvidia-pytriton 0.7.0: run `pip install 'numpy<2'`")


def _on_path() -> Triton | None:
    found = shutil.which("tritonserver")
    if found is None:
        return None
    binary = Path(found).resolve()
    python_backend = binary.parent.parent / "backends" / "python"
    stub = python_backend / "triton_python_backend_stub"
    if not stub.is_file():
        raise CannotStart(
            f"{binary} was found on PATH, but its Python backend {stub} is missing: install the Python backend"
        )
    return Triton(
        origin=str(binary),
        binary=binary,
        python_backend=python_backend,
        stub=stub,
        library_folders=(binary.parent.parent / "lib",),
    )
