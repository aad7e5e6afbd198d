"""What one stream was to its listener: a flat record, one row of `streams.csv`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

#: done: to its end. interrupted: the caller barged in. rejected: a full server said so. failed: any other error.
#: unfinished: still running when the run ended.
Outcome = Literal["done", "interrupted", "rejected", "failed", "unfinished"]
OUTCOMES: tuple[Outcome, ...] = ("done", "interrupted", "rejected", "failed", "unfinished")


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """Times in ms count from the intended start unless they say otherwise; None where it never came.

    Args:
        start_s: the intended start, in seconds since the run began.
        start_delay_ms: how much later than intended the request was sent: the generator's own lateness.
        running: streams of this generator process that ran when this one was sent, itself included.
        mean_running: the same, averaged over the stream's life.
        first_pcm_ms: the first samples were there. `ttfa_ms`: the first audible sample was played.
        gaps_ms: between arrivals of sound. `least_lead_s`: the least sound in hand when the next came.
        real_time_factor: seconds from sending to the last sound, for each second of sound.
        first_stages_ms, stages_ms: the server's own times per stage, up to the first sound and at the end.
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
    running: int = 1
    mean_running: float = 1.0
    first_text_ms: float | None = None
    first_pcm_ms: float | None = None
    ttfa_ms: float | None = None
    total_ms: float = 0.0
    audio_s: float = 0.0
    tokens: int = 0
    responses: int = 0
    real_time_factor: float | None = None
    underruns: int = 0
    underrun_s: float = 0.0
    least_lead_s: float | None = None
    gaps_ms: tuple[float, ...] = ()
    first_stages_ms: dict[str, float] = field(default_factory=dict)
    stages_ms: dict[str, float] = field(default_factory=dict)
    lead: tuple[tuple[float, float], ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The columns of `streams.csv`: everything but the curves."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        del row["gaps_ms"], row["lead"]
        for name in ("first_stages_ms", "stages_ms"):
            row[name] = " ".join(f"{stage}={ms:.2f}" for stage, ms in row[name].items())
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}

    @classmethod
    def from_row(cls, row: dict[str, str]) -> StreamRecord:
        """A row read back, without its curves. Raises KeyError or ValueError for a row that is none."""

        def number(name: str) -> float | None:
            return float(row[name]) if row[name] else None

        def stages(name: str) -> dict[str, float]:
            return {stage: float(ms) for stage, ms in (pair.split("=") for pair in row[name].split())}

        outcome = row["outcome"]
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome {outcome!r}")
        return cls(
            scenario=row["scenario"],
            seed=int(row["seed"]),
            start_s=float(row["start_s"]),
            warm_up=row["warm_up"] == "True",
            phase=row["phase"],
            outcome=outcome,
            error=row["error"],
            start_delay_ms=float(row["start_delay_ms"]),
            running=int(row["running"]),
            mean_running=float(row["mean_running"]),
            first_text_ms=number("first_text_ms"),
            first_pcm_ms=number("first_pcm_ms"),
            ttfa_ms=number("ttfa_ms"),
            total_ms=float(row["total_ms"]),
            audio_s=float(row["audio_s"]),
            tokens=int(row["tokens"]),
            responses=int(row["responses"]),
            real_time_factor=number("real_time_factor"),
            underruns=int(row["underruns"]),
            underrun_s=float(row["underrun_s"]),
            least_lead_s=number("least_lead_s"),
            first_stages_ms=stages("first_stages_ms"),
            stages_ms=stages("stages_ms"),
        )
