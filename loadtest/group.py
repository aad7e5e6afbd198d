"""Counts and histograms of a set of streams (a scenario, a phase, all of them); groups merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtest.histogram import Histogram
from loadtest.record import StreamRecord

#: What is kept of every stream, in ms; `rtf` as ms spent for each second of sound, `underrun` only where > 0.
METRICS = ("ttfa", "first_pcm", "first_text", "total", "gap", "rtf", "underrun", "start_delay", "rejection")


@dataclass(slots=True)
class Group:
    """`counts`: outcomes, and `spoken` (streams with sound), `broken` (of these: with an underrun), `silent`.

    Of later turns of conversations also `later_turns`, and `found`: those of which a slot held more than half.
    `stages_ms`: the server's times per stage, summed over whole streams with sound, which make `staged_audio_s` of it.
    """

    counts: dict[str, int] = field(default_factory=dict)
    audio_s: float = 0.0
    underrun_s: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    total_ms: float = 0.0
    stages_ms: dict[str, float] = field(default_factory=dict)
    staged_audio_s: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def add(self, stream: StreamRecord) -> None:
        self._count(stream.outcome)
        self.audio_s += stream.audio_s
        self.underrun_s += stream.underrun_s
        self.tokens += stream.tokens
        self.prompt_tokens += stream.prompt_tokens
        self.cached_tokens += stream.cached_tokens
        if stream.turn > 1 and stream.prompt_tokens:
            self._count("later_turns")
            if stream.cached_tokens > stream.prompt_tokens / 2:
                self._count("found")
        self.total_ms += stream.total_ms
        if stream.outcome == "done" and stream.audio_s:
            self.staged_audio_s += stream.audio_s
            self._add_stages(stream.stages_ms)
        if stream.first_pcm_ms is not None:
            self._count("spoken")
            if stream.underruns:
                self._count("broken")
            if stream.ttfa_ms is None:
                self._count("silent")
        rtf = stream.real_time_factor
        measured = {
            "ttfa": stream.ttfa_ms,
            "first_pcm": stream.first_pcm_ms,
            "first_text": stream.first_text_ms,
            "total": stream.total_ms if stream.outcome == "done" else None,
            "rtf": None if rtf is None or stream.outcome != "done" else rtf * 1e3,
            "underrun": stream.underrun_s * 1e3 if stream.underruns else None,
            "start_delay": stream.start_delay_ms,
            "rejection": stream.total_ms if stream.outcome == "rejected" else None,
        }
        for name, value_ms in measured.items():
            if value_ms is not None:
                self._histogram(name).record(value_ms)
        for gap_ms in stream.gaps_ms:
            self._histogram("gap").record(gap_ms)

    @property
    def streams(self) -> int:
        return sum(self.counts.get(o, 0) for o in ("done", "interrupted", "rejected", "failed", "unfinished"))

    @property
    def lost(self) -> int:
        """Streams that did not give their caller what was asked for."""
        return sum(self.counts.get(outcome, 0) for outcome in ("rejected", "failed", "unfinished"))

    def histogram(self, metric: str) -> Histogram:
        """The histogram of one metric, empty if nothing was recorded."""
        return self.histograms.get(metric) or Histogram()

    def merge(self, other: Group) -> None:
        for name, count in other.counts.items():
            self._count(name, count)
        self.audio_s += other.audio_s
        self.underrun_s += other.underrun_s
        self.tokens += other.tokens
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.total_ms += other.total_ms
        self.staged_audio_s += other.staged_audio_s
        self._add_stages(other.stages_ms)
        for name, histogram in other.histograms.items():
            self._histogram(name).merge(histogram)

    def _add_stages(self, stages_ms: Mapping[str, float]) -> None:
        for stage, ms in stages_ms.items():
            self.stages_ms[stage] = self.stages_ms.get(stage, 0.0) + ms

    def _count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def _histogram(self, name: str) -> Histogram:
        return self.histograms.setdefault(name, Histogram())
