"""Asks a running server every case, one at a time, through the client a user has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.requests import request_of
from loadtest.driver import Drive
from vita_client import Client
from vita_client.events import Collector, Metrics

#: A model that does not stop is cut off here; a right answer has less than 100 tokens.
MAX_TOKENS = 250
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came back. `pcm`: int16 [samples] at `rate_hz`. Times in ms; `lm_ms`: spent by the language model,
    `first_audio_ms`: TTFA as `loadtest.driver` defines it.
    """

    case: Case
    mode: str
    text: str
    tokens: tuple[int, ...]
    pcm: NDArray[np.int16]
    rate_hz: int
    reason: str
    lm_ms: float
    elapsed_ms: float
    first_audio_ms: float | None
    real_time_factor: float | None

    @property
    def wave(self) -> NDArray[np.float32]:
        """float32 [samples] in [-1, 1]."""
        return self.pcm.astype(np.float32) / 32768.0


def ask_all(
    url: str,
    cases: Iterable[Case],
    mode: str,
    tts_temperature: float | None = None,
    warm_up: int = 2,
    repetition_penalty: float | None = None,
) -> Iterator[Outcome]:
    """The outcomes in the order of the cases; the first `warm_up` cases are asked once before, unmeasured.

    `tts_temperature`: None is the server's default for speech synthesis; all other tasks are greedy by default.
    `repetition_penalty`: None is the checkpoint's own.

    Raises:
        EvaluationError: a stream ended without a response. VitaError: the server failed.
    """
    cases = list(cases)
    with Client(url) as client:
        for case in cases[:warm_up]:
            _ask(client, case, mode, tts_temperature, repetition_penalty)
        for case in cases:
            yield _ask(client, case, mode, tts_temperature, repetition_penalty)


def _ask(
    client: Client, case: Case, mode: str, tts_temperature: float | None, repetition_penalty: float | None
) -> Outcome:
    temperature = tts_temperature if case.task == "tts" else None
    request = request_of(case, mode, MAX_TOKENS, temperature, repetition_penalty)
    collector = Collector()
    drive = Drive(request, _TIMEOUT_S, collector.add)
    record = drive.run(client)
    if drive.failure is not None:
        raise drive.failure
    if not record.responses:
        raise EvaluationError(f"case {case.id}, mode {mode}: the stream ended without a response")
    reply = collector.reply(None, Metrics())
    return Outcome(
        case=case,
        mode=mode,
        text=reply.text,
        tokens=reply.tokens,
        pcm=reply.pcm,
        rate_hz=reply.sample_rate_hz,
        reason=record.reason,
        lm_ms=record.stages_ms.get("lm", 0.0),
        elapsed_ms=record.total_ms,
        first_audio_ms=record.ttfa_ms,
        real_time_factor=record.real_time_factor,
    )
