"""Faster or slower speech of the same pitch, by FFmpeg's atempo."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

#: Below this one filter is not enough.
_SLOWEST = 0.5


class Tempo:
    """int16 [samples] of one sound, in pieces -> the same at another speed."""

    def __init__(self, speed: float, rate_hz: int) -> None:
        self._rate_hz, self._pushed, self._graph = rate_hz, 0, Graph()
        factors = [speed] if speed >= _SLOWEST else [_SLOWEST, speed / _SLOWEST]
        source = self._graph.add_abuffer(
            sample_rate=rate_hz, format="s16", layout="mono", time_base=Fraction(1, rate_hz)
        )
        tempos = [self._graph.add("atempo", f"{factor:g}") for factor in factors]
        self._graph.link_nodes(source, *tempos, self._graph.add("abuffersink")).configure()

    def push(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """What is ready of it, which may be nothing."""
        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate_hz, self._pushed, Fraction(1, self._rate_hz)
            self._pushed += len(samples)
            self._graph.push(frame)
        return self._ready()

    def finish(self) -> NDArray[np.int16]:
        """The rest."""
        self._graph.push(None)
        return self._ready()

    def _ready(self) -> NDArray[np.int16]:
        pieces = [np.zeros(0, np.int16)]
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return np.concatenate(pieces)
            assert isinstance(frame, av.AudioFrame)
            pieces.append(frame.to_ndarray().reshape(-1).astype(np.int16, copy=False))
