"""Hashes and sizes of files, and a text file that is either old or new: what builds are recognised by."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vita_audio.contract.errors import EngineError

_CHUNK_BYTES = 1 << 20


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
