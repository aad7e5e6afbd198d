"""Spoken answers of chats, by the id that their callers got, so that a conversation can go on from one of them.

In the memory of one gateway, for an hour, and within bounds: the oldest go first. No sound is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEPT_S = 3600
MAX_ANSWERS, MAX_IDS = 4096, 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class SpokenAnswer:
    """An answer that was spoken.

    Attributes:
        key: name of the API key it was made for.
        asked: digest of the messages that it answers.
        history: int32 [ids], the conversation up to its end; empty if the server did not send it.
        transcript: its words.
        expires_s: Unix time.
    """

    key: str
    asked: bytes
    history: NDArray[np.int32]
    transcript: str
    expires_s: float


class SpokenAnswers:
    """All that are kept.

    Args:
        clock: Unix time.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._ids = clock, 0
        self._answers: dict[str, SpokenAnswer] = {}  # the oldest first

    def expiry(self) -> int:
        """When an answer that is kept now is forgotten, Unix time."""
        return int(self._clock()) + KEPT_S

    def keep(self, answer_id: str, answer: SpokenAnswer) -> None:
        self._answers[answer_id] = answer
        self._ids += len(answer.history)
        while self._answers and (len(self._answers) > MAX_ANSWERS or self._ids > MAX_IDS or self._oldest_expired()):
            self._ids -= len(self._answers.pop(next(iter(self._answers))).history)

    def find(self, answer_id: str, key: str) -> SpokenAnswer | None:
        """An answer that was made for this key; None: there is none, or no longer."""
        answer = self._answers.get(answer_id)
        known = answer is not None and answer.key == key and answer.expires_s > self._clock()
        return answer if known else None

    def _oldest_expired(self) -> bool:
        return next(iter(self._answers.values())).expires_s <= self._clock()
