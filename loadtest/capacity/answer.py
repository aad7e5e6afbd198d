"""From load points to the answer: capacity, predictions, cost, bottleneck. As plain data, text and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from loadtest.capacity.model import ServerModel, capacity_hz, fit, predict
from loadtest.capacity.probe import LoadPoint, observations
from loadtest.capacity.search import SearchResult
from loadtest.errors import LoadTestError
from loadtest.report.chart import Series, chart, picture
from loadtest.slo import Slo

SERVERS = (1, 2, 4, 8)
TURN_FACTORS = (0.5, 1.0, 2.0)
_STYLE = """
body{font:14px system-ui,sans-serif;max-width:980px;margin:24px auto}figure{display:inline-block;width:460px;margin:6px}
svg{width:100%;font-size:10.5px}.grid{stroke:#eee}.line{fill:none;stroke-width:1.6}
.limit{stroke:#c00;stroke-dasharray:4 3}
"""
LOADS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server was started with, and what an hour of it costs (in any currency; None: not said)."""

    slots: int
    queue: int
    price_per_hour: float | None = None


def bottleneck(light: Mapping[str, float], heavy: Mapping[str, float]) -> str | None:
    """The stage whose time for each second of sound grows most from light to heavy load; None when nothing is known."""
    growth = {stage: heavy[stage] - light.get(stage, 0.0) for stage in heavy}
    return max(growth, key=lambda stage: growth[stage]) if growth else None


def answer(
    result: SearchResult[LoadPoint],
    held_out: LoadPoint | None,
    overload: Sequence[LoadPoint],
    slo: Slo,
    limits: Limits,
) -> dict[str, Any]:
    """Everything that can be said. The model is fitted without the held-out point."""
    points = sorted((point.seen for point in result.points), key=lambda point: point.rate_hz)
    heaviest = max((p for p in points if p.rate_hz == result.kept_hz), key=lambda p: p.rate_hz, default=points[-1])
    sound_s_per_s = heaviest.figures["streams"]["audio_s_per_s"]
    found: dict[str, Any] = {
        "slo": asdict(slo),
        "capacity_per_s": result.kept_hz,
        "broken_at_per_s": result.broken_hz,
        "stopped": result.stopped,
        "generator_kept_up": all(point.kept_up for point in points),
        "points": [_measured(point) for point in points],
        "overload": [_measured(point) for point in overload],
        "bottleneck": bottleneck(points[0].stages_ms(), heaviest.stages_ms()),
        "stages_ms_per_sound_s": {"light": points[0].stages_ms(), "heavy": heaviest.stages_ms()},
        "mean_running": _mean_running(heaviest) if result.kept_hz else None,
        "sound_s_per_s": sound_s_per_s if result.kept_hz else None,
        "cost_per_sound_hour": _cost(limits.price_per_hour, sound_s_per_s) if result.kept_hz else None,
    }
    try:
        model = fit([o for point in points for o in observations(point.streams)], limits.slots, limits.queue)
    except LoadTestError as error:
        return {**found, "model": None, "model_error": str(error)}
    return {**found, "model": model.to_dict(), **_predictions(model, result.kept_hz, held_out, points, slo, limits)}


def _predictions(
    model: ServerModel,
    kept_hz: float | None,
    held_out: LoadPoint | None,
    points: Sequence[LoadPoint],
    slo: Slo,
    limits: Limits,
) -> dict[str, Any]:
    promise = (slo.ttfa_p95_ms, slo.underrun_rate, slo.loss_rate)
    whole_hz = kept_hz or capacity_hz(model, *promise)
    by_servers = {}
    for servers in SERVERS:
        rate_hz = capacity_hz(model, *promise, servers)
        sound = predict(model, rate_hz, servers).sound_s_per_s if rate_hz else 0.0
        price = None if limits.price_per_hour is None else limits.price_per_hour * servers
        by_servers[str(servers)] = {"capacity_per_s": rate_hz, "cost_per_sound_hour": _cost(price, sound)}
    return {
        "predicted_capacity_per_s": capacity_hz(model, *promise),
        "predicted_points": [asdict(predict(model, point.rate_hz)) for point in points],
        "predicted_loads": [asdict(predict(model, whole_hz * load)) for load in LOADS] if whole_hz else [],
        "predicted_servers": by_servers,
        "predicted_turns": {f"{f:g}": capacity_hz(model.with_turns(f), *promise) for f in TURN_FACTORS},
        "held_out": None if held_out is None else _held_out(model, held_out),
    }


def _held_out(model: ServerModel, point: LoadPoint) -> dict[str, Any]:
    """The point nobody fitted: measured, predicted, and how far apart."""
    predicted = predict(model, point.rate_hz)
    pairs = {
        "ttfa_p50_ms": (point.percentile_ms("ttfa", "p50"), predicted.ttfa_p50_ms),
        "ttfa_p95_ms": (point.percentile_ms("ttfa", "p95"), predicted.ttfa_p95_ms),
        "mean_running": (_mean_running(point), predicted.mean_running),
        "sound_s_per_s": (point.figures["streams"]["audio_s_per_s"], predicted.sound_s_per_s),
    }
    return {
        "rate_per_s": point.rate_hz,
        "streams": len(point.streams),
        **{
            name: {"measured": seen, "predicted": said, "error": None if not seen else said / seen - 1}
            for name, (seen, said) in pairs.items()
        },
    }


def _measured(point: LoadPoint) -> dict[str, Any]:
    return {
        "rate_per_s": point.rate_hz,
        "streams": len(point.streams),
        "kept": point.kept,
        "ttfa_p50_ms": point.percentile_ms("ttfa", "p50"),
        "ttfa_p95_ms": point.percentile_ms("ttfa", "p95"),
        "underrun_rate": point.share("underrun_rate"),
        "loss_rate": point.share("loss_rate"),
        "rejection_p95_ms": point.percentile_ms("rejection", "p95"),
        "mean_running": _mean_running(point),
        "generator_kept_up": point.kept_up,
        "report": str(point.folder),
    }


def _mean_running(point: LoadPoint) -> float | None:
    """Streams in the server on average: Little's law over the streams that were measured."""
    about = point.figures["about"]["settings"]
    seconds = about["run_time_s"] - about["warm_up_s"]
    return sum(stream.total_ms for stream in point.streams) / 1e3 / seconds if point.streams else None


def _cost(price_per_hour: float | None, sound_s_per_s: float) -> float | None:
    """A server that makes s seconds of sound each second makes s hours of it each hour."""
    return None if price_per_hour is None or not sound_s_per_s else price_per_hour / sound_s_per_s


def text(found: Mapping[str, Any]) -> str:
    """The answer for a terminal."""
    slo = found["slo"]
    lines = [
        f"promise: TTFA P95 <= {slo['ttfa_p95_ms']:g} ms, underrun rate <= {slo['underrun_rate']:g}, "
        f"loss rate <= {slo['loss_rate']:g}",
        f"{'streams/s':>10} {'streams':>8} {'P50 ms':>8} {'P95 ms':>8} {'underruns':>9} {'lost':>7}",
    ]
    for point in [*found["points"], *found["overload"]]:
        lines.append(
            f"{point['rate_per_s']:10.3f} {point['streams']:8d} {_n(point['ttfa_p50_ms']):>8} "
            f"{_n(point['ttfa_p95_ms']):>8} {_n(point['underrun_rate']):>9} {_n(point['loss_rate']):>7} "
            f"{'kept' if point['kept'] else 'broken'}"
            + ("" if point["generator_kept_up"] else " (the generator was too slow: do not trust this point)")
        )
    lines.append(f"capacity of one server: {_n(found['capacity_per_s'])} streams/s ({found['stopped']}; "
                 f"broken at {_n(found['broken_at_per_s'])})")  # fmt: skip
    lines.append(
        f"at capacity: {_n(found['mean_running'])} streams at once, {_n(found['sound_s_per_s'])} s of sound per s "
        f"(as many listeners in real time); cost per hour of sound: {_n(found['cost_per_sound_hour'])}"
    )
    lines.append(f"bottleneck: {found['bottleneck'] or 'not known: the server reports no stage times'}")
    if found["model"] is None:
        return "\n".join([*lines, f"no model: {found['model_error']}"])
    lines.append(f"the model's own capacity: {_n(found['predicted_capacity_per_s'])} streams/s")
    lines += [
        f"predicted at {p['rate_hz']:.3f}/s: TTFA P50 {p['ttfa_p50_ms']:.0f} ms, P95 {p['ttfa_p95_ms']:.0f} ms, "
        f"underruns {p['underrun_rate']:.3g}, lost {p['loss_rate']:.3g}"
        for p in found["predicted_loads"]
    ]
    lines += [
        f"predicted for {servers} servers: {_n(p['capacity_per_s'])} streams/s, cost per hour of sound "
        f"{_n(p['cost_per_sound_hour'])}"
        for servers, p in found["predicted_servers"].items()
    ]
    lines += [
        f"predicted for turns {f} times as long: {_n(hz)} streams/s" for f, hz in found["predicted_turns"].items()
    ]
    if (held := found["held_out"]) is not None:
        for name in ("ttfa_p50_ms", "ttfa_p95_ms", "mean_running", "sound_s_per_s"):
            pair = held[name]
            error = "-" if pair["error"] is None else f"{pair['error'] * 100:+.1f} %"
            lines.append(
                f"held out, {held['rate_per_s']:.3f}/s: {name} measured {_n(pair['measured'])}, "
                f"predicted {_n(pair['predicted'])}, error {error}"
            )
    return "\n".join(lines)


def page(found: Mapping[str, Any]) -> str:
    """The answer as one HTML file, measured and predicted in the same pictures."""
    head = f'<meta charset="utf-8"><title>Capacity</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>Capacity</h1><pre>{escape(text(found))}</pre>'
        + "".join(chart(*drawn) for drawn in _drawn(found).values())
        + "</body></html>\n"
    )


def pictures(found: Mapping[str, Any]) -> dict[str, str]:
    """The pictures of the page as SVG files, by name."""
    return {f"{name}.svg": picture(*drawn) for name, drawn in _drawn(found).items() if drawn[3][0].points}


def _drawn(found: Mapping[str, Any]) -> dict[str, tuple[str, str, str, list[Series], float]]:
    """What `chart` and `picture` take, by name."""
    measured = [*found["points"], *found["overload"]]
    predicted = sorted(
        [*found.get("predicted_points", ()), *found.get("predicted_loads", ())], key=lambda p: p["rate_hz"]
    )

    def lines(name: str) -> list[Series]:
        seen = [(p["rate_per_s"], p[name]) for p in measured if p[name] is not None]
        said = [(p["rate_hz"], p[name]) for p in predicted]
        return [Series("measured", sorted(seen), dots=True), Series("predicted", said)]

    slo, load, share = found["slo"], "streams per s", "share of streams"
    return {
        "ttfa": ("TTFA P95 against load", load, "ms", lines("ttfa_p95_ms"), slo["ttfa_p95_ms"]),
        "underruns": ("Underruns against load", load, share, lines("underrun_rate"), slo["underrun_rate"]),
        "lost": ("Lost streams against load", load, share, lines("loss_rate"), slo["loss_rate"]),
    }


def _n(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
