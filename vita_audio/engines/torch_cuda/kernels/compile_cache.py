"""The folder that compiled kernels are kept in: a temporary one where the usual one cannot be written."""

from __future__ import annotations

import logging
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
    """Sees to a folder that can be written, and logs where it is another one; False where there is none at all."""
    folder = cache_folder()
    fault = _write_fault(folder)
    if not fault:
        return True
    try:
        _temporary.append(tempfile.TemporaryDirectory(prefix="vita_kernels_"))
    except OSError as error:
        logger.warning("%s cannot be written (%s), nor a temporary folder (%s); set %s", folder, fault, error, VARIABLE)
        return False
    os.environ[VARIABLE] = _temporary[-1].name
    logger.warning("%s cannot be written (%s): kernels are compiled at each start; set %s", folder, fault, VARIABLE)
    return True


def _write_fault(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)
