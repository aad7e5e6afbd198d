"""Files and folders that are complete or as they were before: written beside their place, then moved there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from training.errors import TrainingError

_FAULTS = (OSError, RuntimeError, SafetensorError)  # PyTorch reports a failed write as RuntimeError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file; it becomes `path` when the block ends. Folders above it are made.

    Raises:
        TrainingError: it cannot be written (disk full, permissions).
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except _FAULTS as error:
        raise _cannot(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of `folder` when the block ends.

    Raises:
        TrainingError: it cannot be written (disk full, permissions).
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except _FAULTS as error:
        raise _cannot(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def one_training(folder: Path) -> Iterator[None]:
    """One training at a time in a folder. Raises TrainingError when another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not kept by children that outlive a kill
        except OSError as error:
            raise TrainingError(f"{folder}: another training is running there; wait for it, or stop it") from error
        yield


def _cannot(path: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{path}: cannot be written ({error}); free some space and run it again")
