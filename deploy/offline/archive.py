"""Writes a folder as a tar.xz that depends on its files alone, and checks what such an archive holds."""

from __future__ import annotations

import fnmatch
import lzma
import re
import tarfile
from pathlib import Path

from deploy.offline.elf import foreign, is_machine_code
from deploy.offline.errors import CannotPack
from server.locate import CARRIED_PYTHON

#: Machine code is smaller behind the x86 filter; a dictionary as large as the server finds what its files share.
COMPRESSION = {"preset": 6, "dict_size": 1 << 26}
TIMESTAMP = 315_532_800  # 1980-01-01: the oldest that a wheel can hold
#: What each archive must hold, as patterns; {python} is 3.12 and {tag} cpython-312-x86_64-linux-gnu.
CONTENTS = {
    "server": (
        "nvidia_pytriton-*.dist-info/METADATA",
        "nvidia_pytriton.libs/libtritonserver-*.so",
        "nvidia_pytriton.libs/libicudata-*",
        "pytriton/__init__.py",
        "pytriton/tritonserver/bin/tritonserver",
        "pytriton/tritonserver/backends/python/libtriton_python.so",
        "pytriton/tritonserver/backends/python/triton_python_backend_utils.py",
        "pytriton/tritonserver/python_backend_stubs/{python}/triton_python_backend_stub",
    ),
    "packages": (
        "numpy-*.dist-info/METADATA",
        "numpy/core/_multiarray_umath.{tag}.so",
        "tritonclient/grpc/__init__.py",
        "google/protobuf/__init__.py",
        "ml_dtypes/_ml_dtypes_ext.{tag}.so",
        "packaging/version.py",
        "rapidjson.{tag}.so",
        "soundfile.py",
        "_soundfile_data/libsndfile_x86_64.so",
        "_cffi_backend.{tag}.so",
        "pycparser/__init__.py",
        "soxr/soxr_ext*.so",
        "num2words/lang_EN.py",
        "bsdiff4/core.{tag}.so",
    ),
    "grpc": (
        "grpcio-*.dist-info/METADATA",
        "grpc/_cython/cygrpc.{tag}.so",
    ),
    "python": (
        CARRIED_PYTHON + "/bin/python{python}",
        CARRIED_PYTHON + "/include/python{python}/Python.h",
        CARRIED_PYTHON + "/lib/libpython{python}.so.1.0",
        CARRIED_PYTHON + "/lib/python{python}/os.py",
    ),
}
#: Above these something is inside that should have been dropped.
MAX_MB = {"server": 22, "packages": 20, "grpc": 8, "python": 8}


def write_archive(folder: Path, file: Path, compression: dict[str, int] = COMPRESSION) -> None:
    """Pack the contents of `folder`, sorted; machine code gets the mode of a program, which wheels do not keep."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, **compression}]
    with lzma.open(file, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                member = tarfile.TarInfo(str(path.relative_to(folder)))
                member.mode = 0o755 if is_machine_code(path) else 0o644
                member.size, member.mtime = path.stat().st_size, TIMESTAMP
                with path.open("rb") as content:
                    archive.addfile(member, content)


def check_archive(file: Path, part: str, python: str) -> int:
    """Read `file` as the target will: complete, for this `python` ("3.12") and x86-64, and small.

    Returns:
        The number of files.

    Raises:
        CannotPack: one line with the first thing that is wrong.
    """
    tag = f"cpython-{python.replace('.', '')}"
    names = []
    with tarfile.open(file) as archive:
        for member in archive:
            names.append(member.name)
            content = archive.extractfile(member)
            if content is not None and foreign(content.read(20)):
                raise CannotPack(f"{file.name}: {member.name} is not for x86-64")
            other = re.search(r"\.(cpython-\d+)-", member.name)
            if other and other.group(1) != tag:
                raise CannotPack(f"{file.name}: {member.name} is not for Python {python}")
    for pattern in CONTENTS[part]:
        wanted = pattern.format(python=python, tag=f"{tag}-x86_64-linux-gnu")
        if not fnmatch.filter(names, wanted):
            raise CannotPack(
                f"{file.name}: {wanted} is missing: do the versions in requirements.txt still fit the lists here?"
            )
    size = file.stat().st_size
    if size > MAX_MB[part] * 1_000_000:
        raise CannotPack(f"{file.name} has {size / 1e6:.1f} MB, more than {MAX_MB[part]} MB: something was not dropped")
    return len(names)
