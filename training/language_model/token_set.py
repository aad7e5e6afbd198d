"""Samples on disk and the endless stream of packs drawn from them: mixed by task, shuffled, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.files import whole_file
from training.language_model.batch import Sample


class TokenSet:
    """Samples joined end to end: `sample i` is rows offsets[i] .. offsets[i + 1]; each has a task name."""

    def __init__(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        offsets: NDArray[np.int64],
        tasks: NDArray[np.str_],
    ) -> None:
        self.ids, self.trained, self.offsets, self.tasks = ids, trained, offsets, tasks

    @classmethod
    def of(cls, samples: Sequence[Sample], tasks: Sequence[str]) -> TokenSet:
        """Join samples. Raises TrainingError when there are none."""
        if not samples:
            raise TrainingError("there is nothing to train on: no samples, or all longer than a pack")
        offsets = np.cumsum([0, *(len(sample.ids) for sample in samples)])
        ids = np.concatenate([sample.ids for sample in samples])
        return cls(ids, np.concatenate([sample.trained for sample in samples]), offsets, np.array(tasks, np.str_))

    @classmethod
    def load(cls, path: Path) -> TokenSet:
        """Raises TrainingError when the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(stored["ids"], stored["trained"], stored["offsets"], stored["tasks"])
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(f"{path}: not a readable token file ({error}); delete it to make it again") from error

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all. Raises TrainingError when it cannot be written."""
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=self.ids, trained=self.trained, offsets=self.offsets, tasks=self.tasks)

    @property
    def fingerprint(self) -> str:
        """Names its samples: other texts, codes or interleaving have another one."""
        digest = hashlib.sha256()
        for array in (self.ids, self.trained, self.offsets):
            digest.update(array.tobytes())
        return digest.hexdigest()[:12]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Sample:
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return Sample(self.ids[rows], self.trained[rows])

    def packs(self, indices: Sequence[int], length: int) -> list[list[int]]:
        """Cut a list of samples, in its order, into packs of at most `length` tokens."""
        packs: list[list[int]] = []
        room = 0
        for index in indices:
            size = int(self.offsets[index + 1] - self.offsets[index])
            if size > room or not packs:
                packs.append([])
                room = length
            packs[-1].append(index)
            room -= size
        return packs


class PackStream:
    """Endless packs of at most `length` tokens; what comes when depends on the seed and the position only.

    Each epoch holds every sample of a task `mixture[task]` times (a fraction is drawn anew each epoch), shuffled.

    Args:
        mixture: task -> weight; tasks that are not named weigh 1.
        rank, world: this process draws every world-th pack; all together draw what one alone would.

    Raises:
        TrainingError: nothing is left to train on, a weight is negative or names no task, or a sample is longer than
            a pack.
    """

    def __init__(
        self,
        tokens: TokenSet,
        length: int,
        seed: int,
        mixture: Mapping[str, float] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.tokens, self.length, self.seed, self.rank, self.world = tokens, length, seed, rank, world
        self._epoch, self._next = 0, rank
        present = {str(task) for task in np.unique(tokens.tasks)}
        weights = {task: (mixture or {}).get(task, 1.0) for task in present}
        if unknown := sorted(set(mixture or {}) - present):
            raise TrainingError(f"mixture: no samples of {', '.join(unknown)}; there are {', '.join(sorted(present))}")
        if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise TrainingError(f"mixture: {weights} must be weights >= 0, at least one above 0")
        if tokens.lengths.max() > length:
            raise TrainingError(
                f"the longest sample has {tokens.lengths.max()} tokens, more than a pack of {length}; raise the length"
            )
        self._weights = np.array([weights[str(task)] for task in tokens.tasks])
        self._packs = self._epoch_packs(0)

    def __next__(self) -> list[Sample]:
        while self._next >= len(self._packs):
            self._epoch, self._next = self._epoch + 1, self._next - len(self._packs)
            self._packs = self._epoch_packs(self._epoch)
        pack = self._packs[self._next]
        self._next += self.world
        return [self.tokens[index] for index in pack]

    def epoch_packs(self) -> int:
        """Packs of the first epoch, over all processes; later epochs have a few more or less."""
        return len(self._epoch_packs(0))

    def state_dict(self) -> dict[str, Any]:
        """Where process 0 is; any number of processes goes on from there."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of process 0."""
        self._epoch, self._next = state["epoch"], state["next"] + self.rank
        self._packs = self._epoch_packs(self._epoch)

    def _epoch_packs(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch))
        times = np.floor(self._weights + rng.random(len(self._weights))).astype(np.int64)
        order = rng.permutation(np.repeat(np.arange(len(times)), times))
        return self.tokens.packs(order.tolist(), self.length)
