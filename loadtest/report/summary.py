"""A run as plain data: what `report.json` holds, and all that the page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.generator import MAX_CPU_SHARE, MAX_LAG_P99_MS, GeneratorLoad
from loadtest.group import METRICS, Group
from loadtest.histogram import PERCENTILES, Histogram
from loadtest.options import Settings
from loadtest.slo import verdict
from loadtest.tally import Tally
from loadtest.window import Window

#: Running streams are put into classes of about this relative width, so that each has enough streams for a percentile.
_CLASS_GROWTH = 1.3
#: Points of a distribution curve.
_CDF_PERCENTS = (*range(0, 100, 2), 99, 99.5, 99.9, 100)


@dataclass(frozen=True, slots=True)
class Run:
    """`elapsed_s`: how long load was made. `aborted`: why it ended early, or empty."""

    about: Mapping[str, Any]
    settings: Settings
    tally: Tally
    generators: Mapping[str, GeneratorLoad]
    elapsed_s: float
    aborted: str


def summary(run: Run) -> dict[str, Any]:
    """Everything in the report."""
    tally, settings = run.tally, run.settings
    total = tally.total()
    measured_s = max(run.elapsed_s - settings.warm_up_s, 1e-9)
    return {
        "about": dict(run.about),
        "aborted": run.aborted,
        "elapsed_s": run.elapsed_s,
        "streams": {
            "measured": total.streams,
            "warm_up": tally.warm_up,
            "not_in_csv": tally.streams_left_out,
            **total.counts,
            "per_s": total.streams / measured_s,
            "audio_s_per_s": total.audio_s / measured_s,
            "tokens_per_s": total.tokens / measured_s,
            "at_once": total.total_ms / 1e3 / measured_s,  # Little's law
            "underrun_s": total.underrun_s,
            "audio_s": total.audio_s,
        },
        "slo": [{**asdict(check), "kept": check.kept} for check in verdict(total, settings.slo)],
        "errors": dict(sorted(tally.errors.items(), key=lambda item: -item[1])),
        "scenarios": {"all": figures(total)}
        | {name: figures(group) for name, group in sorted(tally.scenarios.items())},
        "phases": [
            {
                "phase": phase.name,
                "offered_per_s": settings.rate_hz(phase),
                **figures(tally.phases[phase.name]),
            }
            for phase in settings.plan.phases
            if phase.name in tally.phases
        ],
        "turns": [{"turn": turn, **figures(group)} for turn, group in sorted(tally.turns.items())],
        "by_running": by_running(tally.windows, tally.window_s),
        "over_time": over_time(tally.windows, tally.window_s),
        "window_s": tally.window_s,
        "ttfa_cdf": cdf(total.histogram("ttfa")),
        "lead": [
            {
                "scenario": stream.scenario,
                "broken": stream.underruns > 0,
                "points": [list(point) for point in stream.lead],
            }
            for stream in tally.curves
        ],
        "generators": {name: _generator(load) for name, load in run.generators.items()},
        "start_delay_p99_ms": total.histogram("start_delay").percentile(99),
        "histograms": {name: histogram.to_text() for name, histogram in total.histograms.items()},
    }


def figures(group: Group) -> dict[str, Any]:
    """Counts and percentiles of one group of streams: ms, and the real-time factor as it is (below 1: in time)."""
    spoken, later = group.counts.get("spoken", 0), group.counts.get("later_turns", 0)
    metrics = {}
    for metric in METRICS:
        histogram = group.histogram(metric)
        if histogram.count:
            names = ["mean", *(f"p{percent:g}" for percent in PERCENTILES), "max"]
            values = [histogram.mean_ms, *histogram.percentiles(), histogram.max_ms]
            unit = 1e3 if metric == "rtf" else 1.0  # ms for each second of sound: 1000 is real time
            known = {name: value / unit for name, value in zip(names, values, strict=True) if value is not None}
            metrics[metric] = {"count": histogram.count, **known}
    return {
        "streams": group.streams,
        "counts": dict(group.counts),
        "audio_s": group.audio_s,
        "underrun_rate": group.counts.get("broken", 0) / spoken if spoken else None,
        "underrun_share": group.underrun_s / (group.audio_s + group.underrun_s) if group.audio_s else None,
        "loss_rate": group.lost / group.streams if group.streams else None,
        "found_share": group.counts.get("found", 0) / later if later else None,
        "reused_share": group.cached_tokens / group.prompt_tokens if group.prompt_tokens else None,
        "stages_ms_per_audio_s": {stage: ms / group.staged_audio_s for stage, ms in group.stages_ms.items()},
        "metrics": metrics,
    }


def over_time(windows: Mapping[int, Window], window_s: int = 1) -> list[dict[str, Any]]:
    """A row for each window: streams running at its end, offered and lost per s, TTFA of those meant to start in it."""
    rows, running = [], 0
    for second in range(min(windows, default=0), max(windows, default=-1) + 1, window_s):
        window = windows.get(second) or Window()
        running += window.sent - window.over
        rows.append(
            {
                "second": second,
                "running": running,
                "offered": window.offered / window_s,
                "lost": window.lost / window_s,
                "ttfa_p95_ms": window.ttfa.percentile(95),
            }
        )
    return rows


def by_running(windows: Mapping[int, Window], window_s: int = 1) -> list[dict[str, Any]]:
    """TTFA and underruns against the streams that ran in the window in which a stream was meant to start."""
    classes: dict[int, tuple[float, Window]] = {}
    running = 0
    for second in range(min(windows, default=0), max(windows, default=-1) + 1, window_s):
        window = windows.get(second) or Window()
        mean = running + (window.sent - window.over) / 2
        running += window.sent - window.over
        if window.offered:
            weight, merged = classes.setdefault(_class(mean), (0.0, Window()))
            merged.merge(window)
            classes[_class(mean)] = (weight + mean * window.offered, merged)
    return [
        {
            "running": weight / merged.offered,
            "streams": merged.offered,
            "ttfa_p50_ms": merged.ttfa.percentile(50),
            "ttfa_p95_ms": merged.ttfa.percentile(95),
            "underrun_rate": merged.broken / merged.spoken if merged.spoken else None,
        }
        for _, (weight, merged) in sorted(classes.items())
    ]


def cdf(histogram: Histogram) -> list[list[float]]:
    """(ms, percent) points of a distribution; none of nothing."""
    values = histogram.percentiles(_CDF_PERCENTS)
    return [[ms, percent] for ms, percent in zip(values, _CDF_PERCENTS, strict=True) if ms is not None]


def _class(running: float) -> int:
    number, upper = 0, 1.0
    while upper < running:
        number, upper = number + 1, max(upper + 1, upper * _CLASS_GROWTH)
    return number


def _generator(load: GeneratorLoad) -> dict[str, Any]:
    return {
        "cpu_share": load.cpu_share,
        "cpu_share_max": load.cpu_share_max,
        "machine_cpu_share": load.machine_cpu_share,
        "lag_p50_ms": load.lag.percentile(50),
        "lag_p99_ms": load.lag.percentile(99),
        "lag_max_ms": load.lag.max_ms,
        "kept_up": load.kept_up,
        "limits": {"cpu_share_max": MAX_CPU_SHARE, "lag_p99_ms": MAX_LAG_P99_MS},
    }
