"""One load point: a whole load test at one rate, in a process of its own, and what it says about the server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.child import child_environment
from loadtest.errors import LoadTestError
from loadtest.report.files import FIGURES, read_figures
from loadtest.report.page import percentile

#: Streams may end for this long after a point, so that the next one begins with an idle server.
DRAIN_S = 20.0
#: What starting locust, the report and the server's own catching up may take besides.
OVERHEAD_S = 10.0
_GRACE_S = 150.0
#: A queue belongs to the stage behind it.
_QUEUES = {"lm_queue": "lm", "decode_queue": "decode"}
#: How a command, the log of the load test, and a traceback begin the text of an error.
_ERROR = re.compile(r"(?:\berror: |/ERROR/loadtest: |^(?:\w+\.)*LoadTestError: )(.+)")


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What was seen at one rate, warm-up left out. `folder` holds the point's own report."""

    rate_hz: float
    folder: Path
    figures: Mapping[str, Any]

    @property
    def kept(self) -> bool:
        return all(check["kept"] for check in self.figures["slo"])

    def row(self) -> dict[str, Any]:
        """Its main figures as plain data."""
        everything, streams = self.figures["scenarios"]["all"], self.figures["streams"]
        return {
            "rate_per_s": self.rate_hz,
            "streams": streams["measured"],
            "kept": self.kept,
            "ttfa_p50_ms": percentile(self.figures, "ttfa", "p50"),
            "ttfa_p95_ms": percentile(self.figures, "ttfa", "p95"),
            "underrun_rate": everything["underrun_rate"],
            "loss_rate": everything["loss_rate"],
            "rejection_p95_ms": percentile(self.figures, "rejection", "p95"),
            "streams_at_once": streams["at_once"],
            "audio_s_per_s": streams["audio_s_per_s"],
            "generator_kept_up": all(load["kept_up"] for load in self.figures["generators"].values()),
            "report": str(self.folder),
        }

    def stages_ms(self) -> dict[str, float]:
        """Milliseconds in each stage and its queue for each second of sound."""
        stages: dict[str, float] = {}
        for name, ms in self.figures["scenarios"]["all"]["stages_ms_per_audio_s"].items():
            stage = _QUEUES.get(name, name)
            stages[stage] = stages.get(stage, 0.0) + ms
        return stages


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
    name = f"the load point at {rate_hz:.3g} streams/s"
    try:
        code, printed = _run(command, seconds + warm_up_s + DRAIN_S + _GRACE_S)
    except subprocess.TimeoutExpired as error:
        raise LoadTestError(f"{name} did not end within {error.timeout:g} s") from error
    if not (folder / FIGURES).exists():
        raise LoadTestError(f"{name} failed: {reason(printed) or f'exit code {code}'}")
    figures = read_figures(folder)
    if figures["aborted"]:
        raise LoadTestError(f"{name} is not complete: {figures['aborted']}")
    return LoadPoint(rate_hz, folder, figures)


def reason(printed: str) -> str:
    """The last error that a load test has printed, without what precedes its text; empty where there was none."""
    found = [match[1] for line in printed.splitlines() if (match := _ERROR.search(line))]
    return found[-1] if found else ""


def _run(command: Sequence[str], limit_s: float) -> tuple[int, str]:
    """Exit code and what was printed. The load ends with this process, whether an error, a signal or a kill ends it."""
    child = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command],
        env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,  # Ctrl-C reaches it once, through us
    )  # fmt: skip
    try:
        out, errors = child.communicate(timeout=limit_s)
    except BaseException:
        child.terminate()  # it lets locust report, within its own limit
        child.communicate()
        raise
    return child.returncode, out + errors
