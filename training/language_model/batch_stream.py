"""The packs of a stream as batches, made ahead in a thread where a GPU computes, and resumable all the same."""

from __future__ import annotations

from collections.abc import Generator
from itertools import repeat
from typing import Any

from training.ahead import in_threads
from training.language_model.batch import Batch, pack
from training.language_model.curriculum import Curriculum
from training.language_model.token_set import PackStream

_Drawn = Generator[tuple[Batch, dict[str, Any]], None, None]


class BatchStream:
    """Endless batches of a stream of packs. Its state is that after the batches that were taken.

    Args:
        ahead: batches made in a thread before they are asked for; 0 makes each when it is.
    """

    def __init__(self, stream: PackStream | Curriculum, ahead: int = 0) -> None:
        self.stream, self._ahead = stream, ahead
        self._begin()

    def __next__(self) -> Batch:
        batch, self._state = next(self._batches)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._batches.close()  # waits for its thread: none may draw while the stream is set
        self.stream.load_state_dict(state)
        self._begin()

    def _begin(self) -> None:
        def draw(stream: PackStream | Curriculum) -> tuple[Batch, dict[str, Any]]:
            return pack(next(stream)), stream.state_dict()

        self._state = self.stream.state_dict()
        self._batches: _Drawn = in_threads(draw, repeat(self.stream), self._ahead, threads=1)
