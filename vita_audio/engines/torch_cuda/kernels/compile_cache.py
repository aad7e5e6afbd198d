"""The folder that compiled kernels are kept in, and loaded from as libraries: a temporary one where the usual one
cannot be written, or no program may run from it (a mount with `noexec`, as Docker's `tmpfs`)."""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

#: Where the GPU language Triton looks first.
VARIABLE = "TRITON_CACHE_DIR"
_temporary: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    home = os.environ.get("TRITON_HOME") or "~"
    return Path(os.environ.get(VARIABLE) or Path(home).expanduser() / ".triton" / "cache")


def make_writable() -> bool:
    """Sees to a folder that can be used, and logs where it is another one; False where there is none at all."""
    folder = cache_folder()
    fault = _fault(folder)
    if not fault:
        return True
    try:
        temporary = tempfile.TemporaryDirectory(prefix="vita_kernels_")
        also = _fault(Path(temporary.name))
    except OSError as error:
        also = error.strerror or str(error)
    if also:
        logger.warning("%s cannot be used (%s), nor a temporary folder (%s); set %s", folder, fault, also, VARIABLE)
        return False
    _temporary.append(temporary)
    os.environ[VARIABLE] = temporary.name
    logger.warning("%s cannot be used (%s): kernels are compiled at each start; set %s", folder, fault, VARIABLE)
    return True


def _fault(folder: Path) -> str:
    """Why no library can be written to a folder, or loaded from there; "" where both can be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
            mmap.mmap(file.fileno(), 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        return ""
    except OSError as error:
        return error.strerror or str(error)
