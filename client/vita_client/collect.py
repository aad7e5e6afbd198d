"""Joins the events of a stream into one `Reply`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.messages import Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_client.events import Event, Metrics, Pcm, Reply, TextDelta, TokensDelta


class Collector:
    """Add events in order, then ask for the reply."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._pcm: list[NDArray[np.int16]] = []

    def add(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._text.append(event.text)
        elif isinstance(event, TokensDelta):
            self._tokens.extend(event.ids)
        elif isinstance(event, Pcm):
            self._pcm.append(event.samples)

    def reply(self, status: Status | None, metrics: Metrics) -> Reply:
        pcm = np.concatenate(self._pcm) if self._pcm else np.zeros(0, np.int16)
        return Reply("".join(self._text), tuple(self._tokens), pcm, OUTPUT_SAMPLE_RATE_HZ, status, metrics)
