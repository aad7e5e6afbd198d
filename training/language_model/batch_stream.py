"""The packs of a stream as batches, made ahead in a thread where a GPU computes, and resumable all the same."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from training.language_model.batch import Batch, pack
from training.language_model.curriculum import Curriculum
from training.language_model.token_set import PackStream


class BatchStream:
    """Endless batches of a stream of packs. Its state is that after the batches that were taken.

    Args:
        ahead: batches made in a thread before they are asked for; 0 makes each when it is.
    """

    def __init__(self, stream: PackStream | Curriculum, ahead: int = 0) -> None:
        self.stream, self._ahead = stream, ahead
        self._state = stream.state_dict()
        self._pool = ThreadPoolExecutor(1, "packs") if ahead else None
        self._coming: list[Future[tuple[Batch, dict[str, Any]]]] = []

    def __next__(self) -> Batch:
        if self._pool is None:
            batch, self._state = self._draw()
            return batch
        while len(self._coming) <= self._ahead:
            self._coming.append(self._pool.submit(self._draw))
        batch, self._state = self._coming.pop(0).result()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for future in self._coming:  # none may draw while the stream is set
            future.result()
        self._coming.clear()
        self.stream.load_state_dict(state)
        self._state = self.stream.state_dict()

    def _draw(self) -> tuple[Batch, dict[str, Any]]:
        batch = pack(next(self.stream))
        return batch, self.stream.state_dict()
