"""The page: one run, or several side by side, as one HTML file with everything in it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from loadtest.picture import Picture, Series, figure_html
from loadtest.tally import LAST_TURN

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1120px;color:#222;padding:0 12px}
h1{font-size:22px}h2{font-size:16px;margin:26px 0 6px;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:6px 0}td,th{padding:2px 9px;text-align:right;border-bottom:1px solid #eee}
td:first-child,th:first-child{text-align:left}.runs{display:grid;gap:26px}.charts{display:flex;flex-wrap:wrap;gap:14px}
figure{margin:0;width:540px}figcaption{font-weight:600}img{width:100%}
.kept{color:#237a23}.missed{color:#b00020;font-weight:600}.none{color:#888}pre{white-space:pre-wrap;overflow-wrap:anywhere}
"""
#: Name and unit of each figure; percentiles are in this unit.
_METRICS = {
    "ttfa": "TTFA, ms",
    "first_pcm": "first samples, ms",
    "first_text": "first text, ms",
    "total": "whole stream, ms",
    "gap": "gap between chunks, ms",
    "rtf": "real-time factor",
    "underrun": "silence in a stream with underruns, ms",
    "start_delay": "sent later than intended, ms",
    "rejection": "time to a rejection, ms",
}
_COLUMNS = ("count", "mean", "p50", "p90", "p95", "p99", "max")


def page(runs: Sequence[Mapping[str, Any]], names: Sequence[str] = ("",)) -> str:
    """Summaries (see `report.summary`) as HTML; two or more stand side by side."""
    title = "Load test" if len(runs) == 1 else "Load tests compared"
    columns = f"grid-template-columns:repeat({len(runs)},minmax(0,1fr))"
    wide = "" if len(runs) == 1 else f"body{{max-width:{1120 * len(runs)}px}}"
    body = "".join(f"<section>{_run(run, name)}</section>" for run, name in zip(runs, names, strict=True))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}{wide}</style>'
    table = _differences(runs, names) if len(runs) > 1 else ""
    content = f'<h1>{title}</h1>{table}<div class="runs" style="{columns}">{body}</div>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{content}</body></html>\n'


def _run(run: Mapping[str, Any], name: str) -> str:
    about = run["about"]
    parts = [f"<h1>{escape(name)}</h1>" if name else ""]
    if run["aborted"]:
        parts.append(f'<p class="missed">This run is not complete: {escape(run["aborted"])}</p>')
    parts += [
        f"<p>{escape(about.get('date', ''))} · {escape(about.get('generator_machine', ''))}<br>",
        f"<code>{escape(about.get('command', ''))}</code> {escape(about.get('note', ''))}</p>",
        "<h2>SLO</h2>", _slo(run["slo"]), _loop_note(run),
        "<h2>Streams</h2>",
        _table(["", ""], [[key.replace("_", " "), _number(value)] for key, value in run["streams"].items()]),
        '<h2>Pictures</h2><div class="charts">', *map(figure_html, pictures(run).values()), "</div>",
        "<h2>Percentiles, counted from sending</h2>",
        *(_percentiles(scenario, found) for scenario, found in run["scenarios"].items()),
        "<h2>Where the server's time goes, ms for each second of sound</h2>", _stages(run["scenarios"]["all"]),
        "<h2>Load points</h2>", _phases(run["phases"]),
        *(["<h2>Turns of conversations</h2>", _turns(run["turns"])] if run.get("turns") else []),
        "<h2>Errors</h2>",
        _table(["kind", "streams"], [[escape(kind), str(count)] for kind, count in run["errors"].items()])
        if run["errors"] else "<p>none</p>",
        "<h2>Generator</h2>", _generators(run),
        f"<h2>Manifest</h2><pre>{escape(json.dumps(about, indent=1))}</pre>",
    ]  # fmt: skip
    return "".join(parts)


def pictures(run: Mapping[str, Any]) -> dict[str, Picture]:
    """The page's pictures by file name; some may be empty."""
    promised = next(check["limit"] for check in run["slo"] if check["name"] == "TTFA P95")
    limit = (promised, f"promised P95, {promised:g} ms")
    load, time, running = run["by_running"], run["over_time"], "streams running"
    by_load = [
        Series("P50", _points(load, "running", "ttfa_p50_ms"), dots=True),
        Series("P95", _points(load, "running", "ttfa_p95_ms"), dots=True),
    ]
    underruns = [Series("", [(x, 100 * y) for x, y in _points(load, "running", "underrun_rate")], dots=True)]
    streams = [
        Series("running", _points(time, "second", "running")),
        Series("offered per s", _points(time, "second", "offered")),
        Series("lost per s", _points(time, "second", "lost")),
    ]
    lead = [
        Series(name, curve["points"], colour=colour)
        for broken, name, colour in ((False, "without underrun", 0), (True, "with underrun", 1))
        for curve in run["lead"] if curve["broken"] == broken
    ]  # fmt: skip
    width = f"{run['window_s']} s" if run.get("window_s", 1) > 1 else "second"
    late = [Series(f"P95 of each {width}", _points(time, "second", "ttfa_p95_ms"), line=False)]
    cdf = "% of streams"
    return {
        "ttfa": Picture("TTFA of all streams", "ms", cdf, [Series("", [(x, y) for x, y in run["ttfa_cdf"]])]),
        "ttfa_load": Picture("TTFA against load", running, "ms", by_load, limit if load else None),
        "underruns": Picture("Streams with underruns against load", running, cdf, underruns),
        "streams": Picture("Streams over time", "s", "streams", streams),
        "ttfa_time": Picture("TTFA over time", "s", "ms", late, limit),
        "lead": Picture("Sound in hand of single streams", "s since sending", "s of sound", lead),
    }


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in rows if row[y] is not None]


def _slo(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [check["name"], _value(check["value"], check["unit"]), _value(check["limit"], check["unit"]),
         _mark(check["kept"], "kept", "MISSED")]
        for check in checks
    ]  # fmt: skip
    return _table(["", "measured", "promised at most", ""], rows)


def _percentiles(scenario: str, found: Mapping[str, Any]) -> str:
    rows = [[_METRICS[m], *(_number(values.get(c)) for c in _COLUMNS)] for m, values in found["metrics"].items()]
    return _table([f"{escape(scenario)} ({found['streams']} streams)", *_COLUMNS], rows)


def _stages(found: Mapping[str, Any]) -> str:
    stages = found["stages_ms_per_audio_s"]
    return _table([name.replace("_", " ") for name in stages], [[_number(ms) for ms in stages.values()]])


def _phases(phases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for phase in phases:
        ttfa = phase["metrics"].get("ttfa", {})
        rows.append(
            [escape(phase["phase"]), _number(phase["offered_per_s"]), str(phase["streams"]), _number(ttfa.get("p50")),
             _number(ttfa.get("p95")), _value(phase["underrun_rate"], ""), _value(phase["loss_rate"], "")]
        )  # fmt: skip
    columns = ["load", "offered streams/s", "streams", "TTFA P50 ms", "TTFA P95 ms", "with underruns", "lost"]
    return _table(columns, rows)


def _turns(turns: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in turns:
        ttfa = each["metrics"].get("ttfa", {})
        turn = f"{each['turn']} and later" if each["turn"] == LAST_TURN else str(each["turn"])
        rows.append(
            [turn, str(each["streams"]), _number(ttfa.get("p50")), _number(ttfa.get("p95")),
             _value(each["found_share"], ""), _value(each["reused_share"], "")]
        )  # fmt: skip
    return _table(["turn", "streams", "TTFA P50 ms", "TTFA P95 ms", "found in a slot", "tokens reused"], rows)


def _generators(run: Mapping[str, Any]) -> str:
    rows = [
        [escape(name), *(_value(load[key], "") for key in ("cpu_share", "cpu_share_max", "machine_cpu_share")),
         _value(load["lag_p99_ms"], "ms"), _mark(load["kept_up"], "kept up", "TOO SLOW: it delays the figures")]
        for name, load in run["generators"].items()
    ]  # fmt: skip
    text = (
        f"<p>99 % of the streams were sent within {_number(run['start_delay_p99_ms'])} ms of their intended start.</p>"
    )
    return text + _table(["process", "of a core", "peak", "of the machine", "event loop late, P99", ""], rows)


def _loop_note(run: Mapping[str, Any]) -> str:
    if run["about"].get("settings", {}).get("loop") == "closed":
        return "<p>Closed loop: users wait for a slow server: queueing is hidden. Use the open loop for capacity.</p>"
    return "<p>Open loop: requests are sent at their time, whether or not earlier ones have ended.</p>"


def _differences(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The main figures of all runs, and the last one against the first."""
    picks: list[tuple[str, Callable[[Mapping[str, Any]], float | None]]] = [
        (f"{_METRICS[metric]} {percent}", functools.partial(percentile, metric=metric, percent=percent))
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


def percentile(run: Mapping[str, Any], metric: str, percent: str) -> float | None:
    """A percentile ("p95") of all streams of a run; None where nothing was measured."""
    value: float | None = run["scenarios"]["all"]["metrics"].get(metric, {}).get(percent)
    return value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    """Three significant digits at least, never as a power of ten."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _value(value: float | None, unit: str) -> str:
    """With its unit; a share in percent."""
    if value is None:
        return "-"
    return f"{value:.0f} ms" if unit == "ms" else f"{100 * value:.3g} %"


def _mark(good: bool, yes: str, no: str) -> str:
    return f'<span class="{"kept" if good else "missed"}">{yes if good else no}</span>'
