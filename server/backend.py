"""Assembles what Triton gets folders of, out of links below the server's private folder.

Triton hands the paths of its backend folder and of its models to a shell, unquoted, and those of libraries are a list
with separators. The private folder's path has no character that means anything there, whatever the names behind the
links are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from server.locate import Triton

STUB = "triton_python_backend_stub"


def assemble_backends(triton: Triton, folder: Path) -> Path:
    """Make ``folder/backends/python`` (the Python backend with the stub of the running Python); ``folder/backends``.

    A link to the stub keeps the stub's own library path working (it is relative to the real file), a copy would not.
    """
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    for file in triton.python_backend.iterdir():
        if file.is_file() and file.name != STUB:
            (python / file.name).symlink_to(file)
    (python / STUB).symlink_to(triton.stub)
    return python.parent


def link_repository(repository: Path, folder: Path) -> Path:
    """Make ``folder/models`` a link to the model repository."""
    link = folder / "models"
    link.symlink_to(repository.resolve())
    return link


def plain_path(path: Path, link: Path) -> Path:
    """`path`, or `link` made to lead there: where only one line of ASCII is read in every locale."""
    if str(path).isascii() and str(path).isprintable():
        return path
    link.symlink_to(path)
    return link


def link_libraries(libraries: Iterable[Path], folder: Path) -> list[Path]:
    """Make ``folder/libraries/0`` and so on links to folders of shared libraries, in their order."""
    (folder / "libraries").mkdir()
    links = []
    for number, library in enumerate(libraries):
        links.append(folder / "libraries" / str(number))
        links[-1].symlink_to(library.resolve())
    return links
