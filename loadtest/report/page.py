"""The page: one run, or several side by side, as one HTML file with everything in it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from loadtest.report.chart import Series, chart, picture

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1020px;color:#222;padding:0 12px}
h1{font-size:22px}h2{font-size:16px;margin:26px 0 6px;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:6px 0}td,th{padding:2px 9px;text-align:right;border-bottom:1px solid #eee}
td:first-child,th:first-child{text-align:left}.runs{display:grid;gap:26px}.charts{display:flex;flex-wrap:wrap;gap:14px}
figure{margin:0;width:460px}figcaption{font-weight:600}svg{width:100%;font-size:10.5px}svg text{fill:#444}
.grid{stroke:#eee}.line{fill:none;stroke-width:1.6}.limit{stroke:#c00;stroke-dasharray:4 3}
.kept{color:#237a23}.broken{color:#b00020;font-weight:600}.none{color:#888}pre{white-space:pre-wrap;overflow-wrap:anywhere}
"""
_METRICS = {
    "ttfa": "time to first audible sound",
    "first_pcm": "time to first samples",
    "first_text": "time to first text",
    "total": "whole stream",
    "gap": "gap between chunks",
    "rtf": "real-time factor, thousandths",
    "underrun": "silence in a broken stream",
    "start_delay": "sent later than intended",
    "rejection": "time to a rejection",
}


def page(runs: Sequence[Mapping[str, Any]], names: Sequence[str] = ("",)) -> str:
    """Summaries (see `report.summary`) as HTML; two or more stand side by side."""
    title = "Load test" if len(runs) == 1 else "Load tests compared"
    columns = f"grid-template-columns:repeat({len(runs)},minmax(0,1fr))"
    wide = "" if len(runs) == 1 else f"body{{max-width:{1020 * len(runs)}px}}"
    body = "".join(f"<section>{_run(run, name)}</section>" for run, name in zip(runs, names, strict=True))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}{wide}</style>'
    table = _differences(runs, names) if len(runs) > 1 else ""
    content = f'<h1>{title}</h1>{table}<div class="runs" style="{columns}">{body}</div>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{content}</body></html>\n'


def _run(run: Mapping[str, Any], name: str) -> str:
    about, slo = run["about"], run["slo"]
    parts = [f"<h1>{escape(name)}</h1>" if name else ""]
    if run["aborted"]:
        parts.append(f'<p class="broken">This run is not complete: {escape(run["aborted"])}</p>')
    parts += [
        f"<p>{escape(about.get('date', ''))} · {escape(about.get('generator_machine', ''))}<br>",
        f"<code>{escape(about.get('command', ''))}</code> {escape(about.get('note', ''))}</p>",
        "<h2>SLO</h2>",
        _table(
            ["", "measured", "limit", ""],
            [
                [check["name"], f"{_number(check['value'])} {check['unit']}", f"{check['limit']:g} {check['unit']}",
                 _mark(check["kept"], "kept", "NOT kept")]
                for check in slo
            ],
        ),
        _loop_note(run),
        "<h2>Streams</h2>",
        _table(["", ""], [[key, _number(value)] for key, value in run["streams"].items()]),
        '<h2>Pictures</h2><div class="charts">', *(chart(*shown) for shown in _drawn(run).values()),
        "</div>",
        "<h2>Percentiles, ms from the intended start</h2>",
        *(_percentiles(scenario, found) for scenario, found in run["scenarios"].items()),
        "<h2>Load points</h2>", _phases(run["phases"]),
        "<h2>Errors</h2>",
        _table(["kind", "streams"], [[escape(kind), str(count)] for kind, count in run["errors"].items()])
        if run["errors"] else "<p>none</p>",
        "<h2>Generator</h2>", _generators(run),
        f"<h2>Manifest</h2><pre>{escape(json.dumps(about, indent=1))}</pre>",
    ]  # fmt: skip
    return "".join(parts)


def pictures(run: Mapping[str, Any]) -> dict[str, str]:
    """The page's pictures as SVG files, by file name; what was not measured has none."""
    drawn = _drawn(run).items()
    return {f"{name}.svg": picture(*shown) for name, shown in drawn if any(line.points for line in shown[3])}


def _drawn(run: Mapping[str, Any]) -> dict[str, tuple[str, str, str, list[Series], float | None]]:
    """What `chart` and `picture` take, by name."""
    limit = next(check["limit"] for check in run["slo"] if check["name"] == "TTFA P95")
    load, time, running = run["by_running"], run["over_time"], "streams running"
    by_load = [
        Series("P50", _points(load, "running", "ttfa_p50_ms"), dots=True),
        Series("P95", _points(load, "running", "ttfa_p95_ms"), dots=True),
    ]
    underruns = [Series("", _points(load, "running", "underrun_rate"), dots=True)]
    streams = [
        Series("running", _points(time, "second", "running")),
        Series("offered per s", _points(time, "second", "offered")),
        Series("lost per s", _points(time, "second", "lost")),
    ]
    lead = [
        Series("broken" if curve["broken"] else "whole", [tuple(point) for point in curve["points"]],
               colour=1 if curve["broken"] else 0)
        for curve in run["lead"]
    ]  # fmt: skip
    late = [Series("", _points(time, "second", "ttfa_p95_ms"))]
    distribution = [Series("", [(x, y) for x, y in run["ttfa_cdf"]])]
    return {
        "ttfa": ("TTFA distribution", "ms", "% of streams", distribution, None),
        "ttfa_load": ("TTFA against load", running, "ms", by_load, limit),
        "underruns": ("Underruns against load", running, "share of streams", underruns, None),
        "streams": ("Streams over time", "s", "streams", streams, None),
        "ttfa_time": ("TTFA over time", "s", "ms, P95", late, limit),
        "lead": ("Playout lead of single streams", "s since sending", "s of sound in hand", lead, None),
    }


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in rows if row[y] is not None]


def _percentiles(scenario: str, found: Mapping[str, Any]) -> str:
    columns = ("count", "mean", "p50", "p90", "p95", "p99", "max")
    rows = [[_METRICS[m], *(_number(values[c]) for c in columns)] for m, values in found["metrics"].items()]
    return _table([f"{escape(scenario)} ({found['streams']} streams)", *columns], rows)


def _phases(phases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for phase in phases:
        ttfa = phase["metrics"].get("ttfa", {})
        rows.append(
            [escape(phase["phase"]), _number(phase["offered_per_s"]), str(phase["streams"]), _number(ttfa.get("p50")),
             _number(ttfa.get("p95")), _number(phase["underrun_rate"]), _number(phase["loss_rate"])]
        )  # fmt: skip
    return _table(
        ["phase", "offered streams/s", "streams", "TTFA P50 ms", "TTFA P95 ms", "underrun rate", "loss rate"], rows
    )


def _generators(run: Mapping[str, Any]) -> str:
    shown = ("cpu_share", "cpu_share_max", "machine_cpu_share", "lag_p99_ms")
    rows = [
        [escape(name), *(_number(load[key]) for key in shown),
         _mark(load["kept_up"], "kept up", "TOO SLOW: its own delay is in the figures")]
        for name, load in run["generators"].items()
    ]  # fmt: skip
    text = (
        f"<p>99 % of the streams were sent within {_number(run['start_delay_p99_ms'])} ms of their intended start.</p>"
    )
    return text + _table(["process", "CPU share of a core", "peak", "machine", "event loop late P99 ms", ""], rows)


def _loop_note(run: Mapping[str, Any]) -> str:
    if run["about"].get("settings", {}).get("loop") == "closed":
        return (
            "<p>Closed loop: callers wait for a slow server, so queueing is hidden. Use the open loop for capacity.</p>"
        )
    return "<p>Open loop: callers come when they come; time counts from when they meant to start.</p>"


def _differences(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The main figures of all runs, and the last one against the first."""
    picks: list[tuple[str, Callable[[Mapping[str, Any]], float | None]]] = [
        (f"{_METRICS[metric]} {percent}", functools.partial(_percentile, metric=metric, percent=percent))
        for metric in ("ttfa", "first_text", "total", "gap", "rtf")
        for percent in ("p50", "p95", "p99")
    ]
    picks += [
        ("underrun rate", lambda run: run["scenarios"]["all"]["underrun_rate"]),
        ("loss rate", lambda run: run["scenarios"]["all"]["loss_rate"]),
        ("streams per s", lambda run: run["streams"]["per_s"]),
        ("seconds of sound per s", lambda run: run["streams"]["audio_s_per_s"]),
    ]
    rows = []
    for label, pick in picks:
        values = [pick(run) for run in runs]
        first, last = values[0], values[-1]
        change = "" if not first or last is None else f"{(last / first - 1) * 100:+.1f} %"
        rows.append([label, *map(_number, values), change])
    return _table(["", *map(escape, names), "change"], rows)


def _percentile(run: Mapping[str, Any], metric: str, percent: str) -> float | None:
    value: float | None = run["scenarios"]["all"]["metrics"].get(metric, {}).get(percent)
    return value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _mark(good: bool, yes: str, no: str) -> str:
    return f'<span class="{"kept" if good else "broken"}">{yes if good else no}</span>'
