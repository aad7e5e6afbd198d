"""Downloads the pinned wheels for another machine and unpacks of them what serving needs."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from deploy.offline.elf import blank_constants, strip
from deploy.offline.errors import CannotPack

PINS = Path(__file__).with_name("requirements.txt")
#: pip matches these names exactly, so each system that a pinned wheel was built for must be listed.
PLATFORMS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 27, 28, 31, 34, 35)))
#: The archive of each wheel; "packages" holds the others.
PARTS = {"nvidia_pytriton": "server", "grpcio": "grpc"}
STUBS = "pytriton/tritonserver/python_backend_stubs"


def download(folder: Path, python: str) -> None:
    """Put the wheels of requirements.txt for `python` ("3.12") on x86-64 Linux into `folder`.

    Raises:
        CannotPack: pip is missing, the index cannot be reached or has no such wheel.
    """
    try:  # by its metadata: to look for the module itself makes setuptools step back from distutils in this process
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        message = f"{sys.executable} has no pip: run `python -m ensurepip`, or use another Python"
        raise CannotPack(message) from None
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={name}_x86_64" for name in PLATFORMS]
    done = subprocess.run(
        [*command, f"--dest={folder}", f"--requirement={PINS}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"status {done.returncode}"
        raise CannotPack(f"pip cannot get the wheels of {PINS.name}: {reason}; is the package index reachable?")


def unpack(wheels: Path, folder: Path, python: str) -> None:
    """Fill ``folder/server``, ``folder/packages`` and ``folder/grpc`` with what serving needs of the wheels, stripped.

    Raises:
        CannotPack: `strip` is missing, or a library is not the one this was written for.
    """
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / PARTS.get(wheel.name.partition("-")[0], "packages"))
    _trim_server(folder / "server", python)
    for tests in list((folder / "packages" / "numpy").rglob("tests")):
        _remove(tests)
    strip(folder)


def _trim_server(folder: Path, python: str) -> None:
    """Leave the binary, the Python backend, the stub for `python`, and their libraries."""
    for entry in (folder / "pytriton").iterdir():
        if entry.name not in ("__init__.py", "tritonserver"):
            _remove(entry)
    for entry in (folder / STUBS).iterdir():
        if entry.name != python:
            _remove(entry)
    for library in (folder / "nvidia_pytriton.libs").iterdir():
        if library.name.startswith("libpython"):  # for the stub of Python 3.13
            _remove(library)
        elif library.name.startswith("libicudata"):
            blank_constants(library)


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink()
