"""Assembles what Triton gets folders of, out of links below the server's private folder.

Triton hands the paths of its backend folder and of its models to a shell, unquoted, and those of libraries are a list
with separators. The private folder's path has no character that means anything there, whatever the names behind the
links are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from server.locate import Triton
from server.options import ServerOptions
from server.processes import STUB


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


#: The models of which a server has one group: language model and decoder each in a process, or both in one, and then
#: the ensemble of ONE_PROCESS (docs/gpu.md, "One GPU, three processes").
APART, TOGETHER = ("speech_lm", "audio_decoder"), ("speech", "delivery")
ONE_PROCESS = Path("configs") / "one_process.pbtxt"


def link_folders(options: ServerOptions, folder: Path) -> ServerOptions:
    """The same options with links below `folder`: to the models that run, and to engines whose name is not ASCII.

    Python in the stub decodes names as ASCII, whatever the locale; engines then cannot be opened by them.
    """
    repository = folder / "models"
    repository.mkdir()
    others = APART if options.one_process else TOGETHER
    for model in options.repository.resolve().iterdir():
        if model.name in others or not (model / "config.pbtxt").is_file():
            continue
        config = model / ONE_PROCESS
        if options.one_process and config.is_file():
            (repository / model.name).mkdir()
            for part in model.iterdir():
                target = config if part.name == "config.pbtxt" else part
                (repository / model.name / part.name).symlink_to(target)
        else:
            (repository / model.name).symlink_to(model)
    return replace(options, repository=repository, engines=plain_path(options.engines.resolve(), folder / "engines"))


def plain_path(path: Path, link: Path) -> Path:
    """`path`, or `link` made to lead there if the path is not one line of ASCII."""
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
