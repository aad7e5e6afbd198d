"""Files of checkpoints and engines: their hashes and sizes; text files and folders that are complete or not there."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vita_audio.contract.errors import EngineError, VitaError

_CHUNK_BYTES = 1 << 20
#: A disk with less free, when writing fails, is the reason.
_FULL_BYTES = 1 << 20
#: The end of a name that `tempfile` makes.
_RANDOM = re.compile("[a-z0-9_]{8}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a checkpoint or of engines."""

    sha256: str
    bytes: int


def checkpoint_sha256(folder: Path) -> str:
    """Hash of the names and contents of all files of a checkpoint bundle (hidden files do not count).

    Raises:
        EngineError: the folder is missing or empty.
    """
    files = visible_files(folder)
    if not files:
        raise EngineError(f"{folder}: no checkpoint there; name the folder that holds language_model/")
    return combined_sha256({file.relative_to(folder).as_posix(): file_sha256(file) for file in files})


def combined_sha256(parts: Mapping[str, str]) -> str:
    """One hash of several named hashes."""
    return hashlib.sha256(json.dumps(dict(sorted(parts.items()))).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of one file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without hidden ones and those in hidden folders."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))


def file_records(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Records of files inside a folder."""
    return {name: FileRecord(file_sha256(folder / name), (folder / name).stat().st_size) for name in sorted(names)}


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves either the old or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def whole_folder(out: Path, error: type[VitaError]) -> Iterator[Path]:
    """The folder to write into; it becomes `out` when the block ends, and is removed when the block raises.

    Runs with the same `out` do not touch each other: the first to end has it. Commands should call
    `vita_audio.stopping.stop_on_signals`, so that a signal raises too; what a SIGKILL left, the next run removes.

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
        with _temporary_folder(out) as temporary:
            folder = temporary / out.name  # unlike the temporary folder, readable as the user's other folders
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


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, locked while it is in use, so that the next run can tell what a SIGKILL left."""
    with ExitStack() as stack:
        with _locked(out.parent):  # no other run shall find the new folder before it is locked
            for left in out.parent.glob(f".{glob.escape(out.name)}-*"):
                if left.is_dir() and _RANDOM.fullmatch(left.name.removeprefix(f".{out.name}-")):
                    with _locked(left, wait=False) as abandoned:
                        if abandoned:
                            shutil.rmtree(left)
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")))
            stack.enter_context(_locked(made))
        yield made


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a folder; gives whether that worked: another may have it, and some file systems have no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
