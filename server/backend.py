"""Assembles the backend folder that Triton asks for: the Python backend's files plus the stub of the running Python."""

from __future__ import annotations

from pathlib import Path

from server.locate import Triton

STUB = "triton_python_backend_stub"


def assemble_backends(triton: Triton, folder: Path) -> Path:
    """Make ``folder/backends/python`` out of symbolic links and return ``folder/backends``.

    A link to the stub keeps the stub's own library path working (it is relative to the real file), a copy would not.
    """
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    for file in triton.python_backend.iterdir():
        if file.is_file() and file.name != STUB:
            (python / file.name).symlink_to(file)
    (python / STUB).symlink_to(triton.stub)
    return python.parent
