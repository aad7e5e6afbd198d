"""A folder that is complete or not there: written beside its place under a name of its own, and moved at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vita_audio.contract.errors import VitaError

#: A disk with less free, when writing fails, is the reason.
_FULL_BYTES = 1 << 20


@contextmanager
def whole_folder(out: Path, error: type[VitaError]) -> Iterator[Path]:
    """The folder to write into; it becomes `out` when the block ends, and is removed when the block raises.

    Runs with the same `out` do not touch each other: the first to end has it. Commands should call
    `vita_audio.stopping.stop_on_signals`, so that a signal raises too.

    Args:
        out: not there, or an empty folder.
        error: type of what is raised.

    Raises:
        VitaError: as `error`: `out` cannot be such a folder, or could not be written.
    """
    out = out.resolve()
    try:
        if out == Path.cwd():
            raise error(f"--out: {out} is the current folder; name one that is not there")
        if out.exists() and not out.is_dir():
            raise error(f"--out: {out} is a file; name a folder that is not there or empty")
        if out.exists() and any(out.iterdir()):
            raise error(f"--out: {out} is not empty; delete it or choose another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            folder = Path(temporary) / out.name  # unlike the temporary folder, readable as the user's other folders
            folder.mkdir()
            try:
                yield folder
            except Exception as fault:  # safetensors, tokenizers and PyTorch each raise another for a full disk
                if shutil.disk_usage(folder).free < _FULL_BYTES:
                    raise error(f"--out: the disk is full at {out}; free space or name another disk") from fault
                raise
            folder.replace(out)
    except OSError as fault:
        reason = fault.strerror or str(fault)
        raise error(f"--out: {out} cannot be written ({reason}); name another folder") from fault
