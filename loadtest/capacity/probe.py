"""One load point: a whole load test at one rate, in a process of its own, and what the model needs of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.capacity.model import Observation
from loadtest.errors import LoadTestError
from loadtest.options import ROOT
from loadtest.record import StreamRecord
from loadtest.report.files import FIGURES, read_figures, read_streams

#: Streams may end for this long after a point, so that the next one begins with an idle server.
DRAIN_S = 20.0
#: What starting locust, the report and the server's own catching up may take besides.
OVERHEAD_S = 10.0
_GRACE_S = 150.0
#: A queue belongs to the stage behind it.
_QUEUES = {"lm_queue": "lm", "decode_queue": "decode"}


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What was seen at one rate, warm-up left out. `folder` holds the point's own report."""

    rate_hz: float
    folder: Path
    figures: dict[str, Any]
    streams: tuple[StreamRecord, ...]

    @property
    def kept(self) -> bool:
        return all(check["kept"] for check in self.figures["slo"])

    @property
    def kept_up(self) -> bool:
        """Whether the generator was fast enough to trust the figures."""
        return all(load["kept_up"] for load in self.figures["generators"].values())

    def percentile_ms(self, metric: str, percent: str) -> float | None:
        value: float | None = self.figures["scenarios"]["all"]["metrics"].get(metric, {}).get(percent)
        return value

    def share(self, name: str) -> float | None:
        """`underrun_rate` or `loss_rate`."""
        value: float | None = self.figures["scenarios"]["all"][name]
        return value

    def stages_ms(self) -> dict[str, float]:
        """Milliseconds in each stage and its queue for each second of sound."""
        spoken = [s for s in self.streams if s.outcome == "done" and s.audio_s > 0]
        sound_s = sum(s.audio_s for s in spoken)
        stages: dict[str, float] = {}
        for stream in spoken:
            for name, ms in stream.stages_ms.items():
                stage = _QUEUES.get(name, name)
                stages[stage] = stages.get(stage, 0.0) + ms / sound_s
        return stages


def observations(streams: Sequence[StreamRecord]) -> list[Observation]:
    """What the model learns from: streams that ran to their end or were cut short by their caller."""
    return [
        Observation(
            running=stream.running,
            mean_running=stream.mean_running,
            ttfa_s=None if stream.ttfa_ms is None else stream.ttfa_ms / 1e3,
            work_s=(stream.real_time_factor or 0.0) * stream.audio_s,
            sound_s=stream.audio_s,
        )
        for stream in streams
        if stream.outcome in ("done", "interrupted")
    ]


def run_point(
    url: str, rate_hz: float, seconds: float, warm_up_s: float, folder: Path, arguments: Sequence[str]
) -> LoadPoint:
    """Load the server at one rate.

    Args:
        arguments: passed on to `python -m loadtest` (the promise, the mix, ...).

    Raises:
        LoadTestError: the run could not be made, or ended early.
    """
    (folder / FIGURES).unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "loadtest", "--url", url, "--rate", repr(rate_hz), "--out", str(folder),
        "--run-time", repr(seconds + warm_up_s), "--warm-up", repr(warm_up_s), "--drain", repr(DRAIN_S), *arguments,
    ]  # fmt: skip
    try:
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + warm_up_s + DRAIN_S + _GRACE_S
        )
    except subprocess.TimeoutExpired as error:
        raise LoadTestError(
            f"the load point at {rate_hz:.3g} streams/s did not end within {error.timeout:g} s"
        ) from error
    if not (folder / FIGURES).exists():
        said = (run.stderr or run.stdout).strip().splitlines() or [f"exit code {run.returncode}"]
        raise LoadTestError(f"the load point at {rate_hz:.3g} streams/s failed: {said[-1].removeprefix('error: ')}")
    figures = read_figures(folder)
    if figures["aborted"]:
        raise LoadTestError(f"the load point at {rate_hz:.3g} streams/s is not complete: {figures['aborted']}")
    streams = tuple(stream for stream in read_streams(folder) if not stream.warm_up)
    return LoadPoint(rate_hz, folder, figures, streams)
