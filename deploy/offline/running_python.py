"""Copies the running Python, for machines whose own Python has no shared library for Triton's stub to link."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from deploy.offline.elf import strip
from deploy.offline.errors import CannotPack
from server.locate import CARRIED_PYTHON

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
#: Neither serving nor PyTorch imports these.
DROPPED = """
    test tests _test* idlelib tkinter _tkinter* turtledemo ensurepip lib2to3 pydoc_data config-* site-packages
    __pycache__
"""


def copy_running_python(folder: Path, python: str) -> None:
    """Program, shared library, standard library and headers, stripped: a folder that runs wherever it lies.

    Raises:
        CannotPack: the running Python is not `python` ("3.12"), or is static.
    """
    library = f"libpython{VERSION}.so.1.0"
    library_file = Path(str(sysconfig.get_config_var("LIBDIR"))) / library
    if python != VERSION:
        raise CannotPack(
            f"the Python to carry is the running one, {VERSION}, but {python} is asked for: run with {python}"
        )
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") or not library_file.is_file():
        raise CannotPack(
            f"{sys.executable} is a static build without {library}: run with a Python built with --enable-shared"
        )
    home = folder / CARRIED_PYTHON
    name = f"python{python}"
    shutil.copytree(sysconfig.get_path("stdlib"), home / "lib" / name, ignore=shutil.ignore_patterns(*DROPPED.split()))
    shutil.copytree(sysconfig.get_path("include"), home / "include" / name)
    shutil.copy(library_file, home / "lib" / library)
    (home / "bin").mkdir()
    shutil.copy(Path(getattr(sys, "_base_executable", sys.executable)).resolve(), home / "bin" / name)
    strip(home)
