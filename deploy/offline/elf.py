"""Machine code in ELF files: which files are that, and what can be left out of them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

from deploy.offline.errors import CannotPack

MAGIC = b"\x7fELF"
X86_64 = 62  # e_machine


def is_machine_code(file: Path) -> bool:
    """Whether `file` is a program or a library."""
    with file.open("rb") as content:
        return content.read(len(MAGIC)) == MAGIC


def foreign(header: bytes) -> bool:
    """Whether a file that begins with `header` (20 bytes) is machine code of anything but x86-64."""
    return header.startswith(MAGIC) and struct.unpack_from("<H", header, 18) != (X86_64,)


def strip(folder: Path) -> None:
    """Drop debug information and symbols of all machine code below `folder`: 8 MB of the archives.

    Raises:
        CannotPack: `strip` is missing or fails.
    """
    if shutil.which("strip") is None:
        raise CannotPack("the program strip is missing: install binutils")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_machine_code(path)]
    done = subprocess.run(["strip", *files], capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotPack(f"strip failed: {done.stderr.strip().splitlines()[-1]}")


def blank_constants(library: Path) -> None:
    """Zero the read-only data of a shared library, for the 28 MB of Unicode tables that this server never asks for.

    libarchive links libxml2, and that links them, so the file must be there; zeros take no room in an archive.

    Raises:
        CannotPack: it has no such section.
    """
    data = bytearray(library.read_bytes())
    (table,) = struct.unpack_from("<Q", data, 0x28)  # e_shoff
    size, count, names = struct.unpack_from("<3H", data, 0x3A)  # e_shentsize, e_shnum, e_shstrndx
    headers = [struct.unpack_from("<2I4Q", data, table + index * size) for index in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        if data.startswith(b".rodata\0", strings + name):
            data[offset : offset + length] = bytes(length)
            library.write_bytes(data)
            return
    raise CannotPack(f"{library.name} has no section .rodata: pin the nvidia-pytriton that it was written for (0.7.0)")
