"""Runs one stream as its caller would, and measures it. Works with threads and under gevent alike."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise

from loadtest.clock import now_s
from loadtest.playout import Chunk, first_audible, play
from loadtest.record import Outcome, StreamRecord
from loadtest.turns import Turn
from vita_audio.contract.errors import VitaError
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_client import Client, Pcm, ServerUnavailable, StatusUpdate, Stream, StreamBroken, TextDelta

_FULL = ("server is full", "server is shutting down")


@dataclass(slots=True)
class Heard:
    """What has come of a stream so far; times on `clock.now_s`. `audible` is the number of the first audible sample."""

    first_text_s: float | None = None
    chunks: list[Chunk] = field(default_factory=list)
    audible: int | None = None
    samples: int = 0
    first_stages_ms: dict[str, float] = field(default_factory=dict)
    stages_ms: dict[str, float] = field(default_factory=dict)

    def pcm(self, event: Pcm) -> None:
        if self.audible is None and (offset := first_audible(event.samples)) is not None:
            self.audible = self.samples + offset
        self.samples += len(event.samples)
        self.chunks.append(Chunk(now_s(), len(event.samples)))

    def status(self, event: StatusUpdate) -> None:
        self.stages_ms = dict(event.status.timings_ms)
        if self.chunks and not self.first_stages_ms:
            self.first_stages_ms = self.stages_ms


class Call:
    """One call of one caller. `abandon()` ends it from outside: the run is over."""

    def __init__(self, turn: Turn, intended_s: float) -> None:
        self.turn, self.intended_s = turn, intended_s
        self._abandoned = False
        self._stream: Stream | None = None

    def abandon(self) -> None:
        self._abandoned = True
        if self._stream is not None:
            self._stream.cancel()

    def run(
        self, client: Client, timeout_s: float, prebuffer_s: float, blank: StreamRecord
    ) -> tuple[StreamRecord, VitaError | None]:
        """Send, listen to the end, measure.

        Args:
            blank: what is known of the stream before it begins; the rest is filled in.

        Returns:
            The record, and the error that ended the stream.
        """
        heard, error = Heard(), None
        sent_s = now_s()
        try:
            self._stream = client.send(self.turn.request, timeout_s=timeout_s)
            if self._abandoned:
                self._stream.cancel()
            self._listen(self._stream, heard)
        except VitaError as caught:
            error = caught
        record = measure(heard, self.intended_s, sent_s, now_s(), prebuffer_s, blank)
        metrics = self._stream.metrics if self._stream is not None else None
        return replace(
            record,
            outcome=self._outcome(error),
            error="" if error is None else f"{type(error).__name__}: {error}",
            tokens=metrics.tokens if metrics else 0,
            responses=metrics.responses if metrics else 0,
        ), error

    def _listen(self, stream: Stream, heard: Heard) -> None:
        barge_in: threading.Timer | None = None
        try:
            for event in stream:
                if isinstance(event, TextDelta):
                    heard.first_text_s = heard.first_text_s or now_s()
                elif isinstance(event, Pcm):
                    heard.pcm(event)
                    if barge_in is None and self.turn.barge_in_s is not None:
                        barge_in = threading.Timer(self.turn.barge_in_s, stream.cancel)
                        barge_in.start()
                elif isinstance(event, StatusUpdate):
                    heard.status(event)
                    if self.turn.read_delay_s and not event.status.final:
                        time.sleep(self.turn.read_delay_s)
        finally:
            if barge_in is not None:
                barge_in.cancel()

    def _outcome(self, error: VitaError | None) -> Outcome:
        if self._abandoned:
            return "unfinished"
        if error is not None:
            return "rejected" if is_refusal(error) else "failed"
        return "interrupted" if self._stream is not None and self._stream.cancelled else "done"


def is_refusal(error: VitaError) -> bool:
    """A server that is there, and says that it takes no more."""
    return isinstance(error, ServerUnavailable) and any(words in str(error) for words in _FULL)


def is_unreachable(error: VitaError | None) -> bool:
    """No server, or one that went away in the middle."""
    return isinstance(error, (ServerUnavailable, StreamBroken)) and not is_refusal(error)


def measure(
    heard: Heard, intended_s: float, sent_s: float, end_s: float, prebuffer_s: float, blank: StreamRecord
) -> StreamRecord:
    """The numbers of a stream from what came when."""

    def since_intended_ms(moment_s: float | None) -> float | None:
        return None if moment_s is None else (moment_s - intended_s) * 1e3

    chunks = heard.chunks
    played = play(chunks, OUTPUT_SAMPLE_RATE_HZ, prebuffer_s)
    audio_s = played.samples / OUTPUT_SAMPLE_RATE_HZ
    return replace(
        blank,
        start_delay_ms=(sent_s - intended_s) * 1e3,
        first_text_ms=since_intended_ms(heard.first_text_s),
        first_pcm_ms=since_intended_ms(chunks[0].arrived_s if chunks else None),
        ttfa_ms=None if heard.audible is None else since_intended_ms(played.played_at_s(heard.audible)),
        total_ms=(end_s - intended_s) * 1e3,
        audio_s=audio_s,
        real_time_factor=(chunks[-1].arrived_s - sent_s) / audio_s if audio_s else None,
        underruns=len(played.underruns),
        underrun_s=played.underrun_s,
        least_lead_s=played.least_lead_s,
        gaps_ms=tuple((b.arrived_s - a.arrived_s) * 1e3 for a, b in pairwise(chunks)),
        first_stages_ms=heard.first_stages_ms,
        stages_ms=heard.stages_ms,
        lead=tuple((at_s - sent_s, lead_s) for at_s, lead_s in played.lead),
    )
