"""The packs of a stage whose tasks change while it runs: what must be learned first comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.language_model.batch import Sample
from training.language_model.token_set import PackStream, TokenSet


class Curriculum:
    """Endless packs, mixed phase after phase; what comes when depends on the seed and the position only.

    Args:
        phases: (packs, mixture) of each phase, as in `PackStream`; the last one has no end.

    Raises:
        TrainingError: a mixture does not fit the samples.
    """

    def __init__(
        self, tokens: TokenSet, length: int, seed: int, phases: Sequence[tuple[int | None, Mapping[str, float]]]
    ) -> None:
        self.tokens = tokens
        self._streams = [PackStream(tokens, length, seed, mixture) for _, mixture in phases]
        self._left = [packs for packs, _ in phases]
        self._phase = 0

    def __next__(self) -> list[Sample]:
        while (left := self._left[self._phase]) is not None and left <= 0:
            self._phase += 1
        if left is not None:
            self._left[self._phase] = left - 1
        return next(self._streams[self._phase])

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        streams = [stream.state_dict() for stream in self._streams]
        return {"phase": self._phase, "left": list(self._left), "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._phase, self._left = state["phase"], list(state["left"])
        for stream, at in zip(self._streams, state["streams"], strict=True):
            stream.load_state_dict(at)
