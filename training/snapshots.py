"""Snapshots of a running training: written beside their place, then renamed; the newest few are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from training.errors import TrainingError
from training.files import whole_file


class Stateful(Protocol):
    """A module, an optimizer, or anything else that is saved and restored with a training."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Snapshots:
    """`folder/step_00001000.pt`, loadable with `weights_only=True`; never half-written."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the stored snapshots, ascending."""
        return sorted(int(path.stem.removeprefix("step_")) for path in self.folder.glob("step_*"))

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def save(self, step: int, header: dict[str, Any], state: Mapping[str, Stateful]) -> None:
        """Write one snapshot and forget the oldest.

        Args:
            header: plain numbers, strings and tensors (progress, random generators, settings).
            state: what is restored, by name.

        Raises:
            TrainingError: it could not be written (disk full, permissions); earlier snapshots are untouched.
        """
        with whole_file(self._path(step)) as path:
            torch.save({"header": header, "state": {k: v.state_dict() for k, v in state.items()}}, path)
        for old in self.steps()[: -self.keep]:
            self._path(old).unlink(missing_ok=True)

    def load(self, step: int, state: Mapping[str, Stateful]) -> dict[str, Any]:
        """Restore `state` in place and return the header.

        Raises:
            TrainingError: the file is unreadable, or holds a training of another shape.
        """
        path = self._path(step)
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            for name, target in state.items():
                target.load_state_dict(stored["state"][name])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise TrainingError(
                f"{path}: cannot go on from this snapshot ({type(error).__name__}: {error}); delete it to go on from "
                "the one before, or its folder to start again"
            ) from error
        return stored["header"]

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"
