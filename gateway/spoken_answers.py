"""Spoken answers of chats, by the id that their callers got, so that a conversation can go on from one of them.

In the memory of one gateway, for an hour, and within bounds: the oldest go first. Of the sound only that of
the user's turns is kept, and only for a Plus checkpoint, whose next turn needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEPT_S = 3600
MAX_ANSWERS, MAX_BYTES = 4096, 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class SpokenAnswer:
    """An answer that was spoken.

    Attributes:
        key: name of the API key it was made for.
        asked: digest of the messages that it answers.
        history: int32 [ids], the conversation up to its end; empty if the server did not send it.
        transcript: its words.
        expires_s: Unix time.
        clips: the speech that has to be sent with the history; each float32 [samples], at 16 kHz.
    """

    key: str
    asked: bytes
    history: NDArray[np.int32]
    transcript: str
    expires_s: float
    clips: tuple[NDArray[np.float32], ...] = ()

    @property
    def size_bytes(self) -> int:
        return self.history.nbytes + sum(clip.nbytes for clip in self.clips)


class SpokenAnswers:
    """All that are kept.

    Args:
        clock: Unix time.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._bytes = clock, 0
        self._answers: dict[str, SpokenAnswer] = {}  # the oldest first

    def expiry(self) -> int:
        """When an answer that is kept now is forgotten, Unix time."""
        return int(self._clock()) + KEPT_S

    def keep(self, answer_id: str, answer: SpokenAnswer) -> None:
        self._answers[answer_id] = answer
        self._bytes += answer.size_bytes
        while self._answers and (len(self._answers) > MAX_ANSWERS or self._bytes > MAX_BYTES or self._oldest_expired()):
            self._bytes -= self._answers.pop(next(iter(self._answers))).size_bytes

    def find(self, answer_id: str, key: str) -> SpokenAnswer | None:
        """An answer that was made for this key; None: there is none, or no longer."""
        answer = self._answers.get(answer_id)
        known = answer is not None and answer.key == key and answer.expires_s > self._clock()
        return answer if known else None

    def _oldest_expired(self) -> bool:
        return next(iter(self._answers.values())).expires_s <= self._clock()
