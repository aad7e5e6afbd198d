"""One stream of a load test: a flat record, one row of `streams.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from loadtest.driver import CANCELLED, Record
from vita_audio.contract.errors import ServerFull, ServerStopping, ServerUnhealthy

#: done: to its end. interrupted: the user barged in. rejected: a full or stopping server refused it. failed: any other
#: error. unfinished: still running when the run ended.
Outcome = Literal["done", "interrupted", "rejected", "failed", "unfinished"]
REFUSALS = (ServerFull.default_code, ServerStopping.default_code, ServerUnhealthy.default_code)


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """Times in ms count from sending unless they say otherwise, of a conversation's turn from the end of speaking; None
    where it never came.

    Args:
        start_s: the intended start, in seconds since the run began.
        start_delay_ms: how much later than intended the request was sent: the generator's own lateness.
        first_pcm_ms: the first samples arrived. `ttfa_ms`: the first audible sound arrived (`loadtest.driver`).
        gaps_ms: between arrivals of sound. `least_lead_s`: the least sound in hand when the next came.
        real_time_factor: seconds from sending to the last sound, for each second of sound.
        first_stages_ms, stages_ms: the server's own times per stage, up to the first audible sound and at the end.
        turn: of a conversation, from 1; 0: of none. `prompt_tokens`, of which a slot still held `cached_tokens`.
        lead: (seconds since sending, seconds of sound in hand) as the sound came.
    """

    scenario: str
    seed: int
    start_s: float
    warm_up: bool
    phase: str
    outcome: Outcome
    error: str = ""
    start_delay_ms: float = 0.0
    first_text_ms: float | None = None
    first_pcm_ms: float | None = None
    ttfa_ms: float | None = None
    total_ms: float = 0.0
    audio_s: float = 0.0
    tokens: int = 0
    responses: int = 0
    turn: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    real_time_factor: float | None = None
    underruns: int = 0
    underrun_s: float = 0.0
    least_lead_s: float | None = None
    gaps_ms: tuple[float, ...] = ()
    first_stages_ms: Mapping[str, float] = field(default_factory=dict)
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    lead: tuple[tuple[float, float], ...] = ()

    def measured(self, record: Record, intended_s: float, prebuffer_s: float, unfinished: bool) -> StreamRecord:
        """This stream with what was measured of it. `unfinished`: it was cancelled because the run ended."""
        played = record.playout(prebuffer_s)
        return replace(
            self,
            outcome="unfinished" if unfinished else _outcome(record.code, bool(record.error)),
            error=record.error,
            start_delay_ms=(record.sent_s - intended_s) * 1e3,
            first_text_ms=record.first_text_ms,
            first_pcm_ms=record.first_sample_ms,
            ttfa_ms=record.ttfa_ms,
            total_ms=record.total_ms,
            audio_s=record.audio_s,
            tokens=record.tokens,
            responses=len(record.responses),
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            real_time_factor=record.real_time_factor,
            underruns=len(played.underruns),
            underrun_s=played.underrun_s,
            least_lead_s=played.least_lead_s,
            gaps_ms=record.gaps_ms,
            first_stages_ms=record.first_stages_ms,
            stages_ms=record.stages_ms,
            lead=tuple((at_s - record.sent_s, lead_s) for at_s, lead_s in played.lead),
        )

    def to_row(self) -> dict[str, Any]:
        """The columns of `streams.csv`: everything but the curves."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        del row["gaps_ms"], row["lead"]
        for name in ("first_stages_ms", "stages_ms"):
            row[name] = " ".join(f"{stage}={ms:.2f}" for stage, ms in row[name].items())
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def _outcome(code: str, failed: bool) -> Outcome:
    if failed:
        return "rejected" if code in REFUSALS else "failed"
    return "interrupted" if code == CANCELLED else "done"
