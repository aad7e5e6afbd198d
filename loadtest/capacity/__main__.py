"""How many callers one server carries: `python -m loadtest.capacity --ttfa-p95-ms 300 --underrun-rate 0.001`.

Searches the highest arrival rate that keeps the promise, and stops by itself within `--budget-seconds`. Other options
are passed on to `python -m loadtest` (`--mix`, `--mode`, `--seed`). Exit codes: 0 answered, 1 not even the lowest rate
keeps the promise, 2 a wrong option or no server.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.capacity.point import DRAIN_S, OVERHEAD_S, LoadPoint, run_point
from loadtest.capacity.search import SearchResult, search
from loadtest.errors import LoadTestError, wrong
from loadtest.options import MAX_RATE_HZ, check_rate
from loadtest.picture import Picture, Series, write
from loadtest.slo import Slo
from vita_audio.contract.errors import VitaError
from vita_audio.stopping import stop_on_signals

OVERLOAD = (1.5, 2.0)


def main(arguments: list[str] | None = None) -> int:
    options, passed_on = _parser().parse_known_args(arguments)
    slo = Slo(options.ttfa_p95_ms, options.underrun_rate, options.loss_rate)
    try:
        check_rate("--lowest-rate", options.lowest_rate)
        check_rate("--highest-rate", options.highest_rate)
        if not (math.isfinite(options.point_seconds) and 5 <= options.point_seconds <= options.budget_seconds):
            raise wrong("--point-seconds", options.point_seconds, "it is from 5 to --budget-seconds")
        load = functools.partial(_load, options, slo, passed_on)
        result = measure(options, load)
        found = answer(result, [], slo, options.price_per_hour)
        _write(options.out, found)
        if options.overload and result.kept_hz:
            points, not_measured = beyond(load, result.kept_hz)
            found = answer(result, points, slo, options.price_per_hour, not_measured)
            _write(options.out, found)
        for name, picture in pictures(found).items():
            if not picture.empty:
                write(options.out / f"capacity_{name}.svg", picture)
    except (VitaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(found), options.out / "capacity.json", sep="\n")
    return 0 if found["capacity_per_s"] else 1


def measure(options: argparse.Namespace, load: Callable[[float], LoadPoint]) -> SearchResult[LoadPoint]:
    """The search, which leaves time for the points of `--overload`.

    Raises:
        LoadTestError: a load point could not be measured.
    """
    point_s = options.point_seconds + _warm_up_s(options) + DRAIN_S / 2 + OVERHEAD_S
    points_left = 1 + len(OVERLOAD) * options.overload
    end_s = time.monotonic() + options.budget_seconds

    def probe(rate_hz: float) -> tuple[bool, LoadPoint]:
        point = load(rate_hz)
        return point.kept, point

    return search(
        probe,
        options.lowest_rate,
        options.highest_rate,
        has_time=lambda: time.monotonic() + points_left * point_s < end_s,
        ratio=options.ratio,
    )


def beyond(load: Callable[[float], LoadPoint], kept_hz: float) -> tuple[list[LoadPoint], list[str]]:
    """Points beyond the capacity, and why others of them could not be measured: a server may well break there."""
    points, problems = list[LoadPoint](), list[str]()
    rates_hz = {min(share * kept_hz, MAX_RATE_HZ) for share in OVERLOAD}
    for rate_hz in sorted(rates_hz - {kept_hz}):
        try:
            points.append(load(rate_hz))
        except LoadTestError as error:
            problems.append(str(error))
    return points, problems


def _load(options: argparse.Namespace, slo: Slo, passed_on: Sequence[str], rate_hz: float) -> LoadPoint:
    promise = [
        "--slo-ttfa-p95-ms", repr(slo.ttfa_p95_ms), "--slo-underrun-rate", repr(slo.underrun_rate),
        "--slo-loss-rate", repr(slo.loss_rate), *passed_on,
    ]  # fmt: skip
    folder = options.out / f"rate-{rate_hz:.4f}"
    point = run_point(options.url, rate_hz, options.point_seconds, _warm_up_s(options), folder, promise)
    print(f"{rate_hz:.3f} streams/s: {'kept' if point.kept else 'missed'}", file=sys.stderr)
    return point


def _warm_up_s(options: argparse.Namespace) -> float:
    return min(5.0, float(options.point_seconds) / 4)


def _write(folder: Path, found: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "capacity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def answer(
    result: SearchResult[LoadPoint],
    overload: Sequence[LoadPoint],
    slo: Slo,
    price_per_hour: float | None,
    not_measured: Sequence[str] = (),
) -> dict[str, Any]:
    """The capacity with the points it was found by, as plain data. Rates in streams per second."""
    points = sorted((point.seen for point in result.points), key=lambda point: point.rate_hz)
    kept = [point for point in points if point.rate_hz == result.kept_hz]
    heaviest = kept[-1] if kept else points[-1]
    at_capacity = kept[-1].row() if kept else {}
    audio_s_per_s = at_capacity.get("audio_s_per_s")
    return {
        "slo": asdict(slo),
        "capacity_per_s": result.kept_hz,
        "missed_at_per_s": result.broken_hz,
        "stopped": result.stopped,
        "points": [point.row() for point in points],
        "overload": [point.row() for point in overload],
        "overload_not_measured": list(not_measured),
        "bottleneck": bottleneck(points[0].stages_ms(), heaviest.stages_ms()),
        "streams_at_once": at_capacity.get("streams_at_once"),
        "audio_s_per_s": audio_s_per_s,
        # A server that makes s seconds of sound each second makes s hours of it each hour.
        "cost_per_audio_hour": price_per_hour / audio_s_per_s if price_per_hour and audio_s_per_s else None,
    }


def bottleneck(light: Mapping[str, float], heavy: Mapping[str, float]) -> str | None:
    """The stage whose time for each second of sound grows most from light to heavy load; None when nothing is known."""
    growth = {stage: heavy[stage] - light.get(stage, 0.0) for stage in heavy}
    return max(growth, key=lambda stage: growth[stage]) if growth else None


def text(found: Mapping[str, Any]) -> str:
    """The answer for a terminal."""
    slo = found["slo"]
    lines = [
        f"promise: TTFA P95 at most {slo['ttfa_p95_ms']:g} ms, underruns in at most {100 * slo['underrun_rate']:g} % "
        f"of the streams, at most {100 * slo['loss_rate']:g} % lost",
        f"{'streams/s':>10} {'streams':>8} {'P50 ms':>8} {'P95 ms':>8} {'underruns':>9} {'lost':>7}",
    ]
    for point in [*found["points"], *found["overload"]]:
        times = " ".join(f"{_number(point[f'ttfa_p{q}_ms'], '.0f'):>8}" for q in (50, 95))
        shares = f"{_number(point['underrun_rate'], '.1%'):>9} {_number(point['loss_rate'], '.1%'):>7}"
        lines.append(
            f"{point['rate_per_s']:10.3f} {point['streams']:8d} {times} {shares} "
            + ("kept" if point["kept"] else "missed")
            + ("" if point["generator_kept_up"] else " (the generator was too slow: do not trust this point)")
        )
    lines += [f"not measured: {problem}" for problem in found["overload_not_measured"]]
    capacity, missed = _number(found["capacity_per_s"], ".2f"), _number(found["missed_at_per_s"], ".2f")
    return "\n".join(
        [
            *lines,
            f"capacity of one server: {capacity} streams/s (missed at {missed}; the search ended: {found['stopped']})",
            f"at capacity: {_number(found['streams_at_once'], '.1f')} streams at once, "
            f"{_number(found['audio_s_per_s'], '.1f')} s of sound per second; cost of an hour of sound: "
            f"{_number(found['cost_per_audio_hour'], '.4g')}",
            f"bottleneck: {found['bottleneck'] or 'not known: the server reports no stage times'}",
        ]
    )


def pictures(found: Mapping[str, Any]) -> dict[str, Picture]:
    """TTFA and lost streams against load."""
    points = sorted([*found["points"], *found["overload"]], key=lambda point: point["rate_per_s"])
    slo, load = found["slo"], "streams per s"

    def series(name: str, key: str, scale: float = 1.0) -> Series:
        return Series(name, [(p["rate_per_s"], scale * p[key]) for p in points if p[key] is not None], dots=True)

    ttfa = [series("P50", "ttfa_p50_ms"), series("P95", "ttfa_p95_ms")]
    lost = [series("lost", "loss_rate", 100), series("with underruns", "underrun_rate", 100)]
    promised = (slo["ttfa_p95_ms"], f"promised P95, {slo['ttfa_p95_ms']:g} ms")
    return {
        "ttfa": Picture("TTFA against load", load, "ms", ttfa, promised),
        "lost": Picture("Lost streams and underruns against load", load, "% of streams", lost),
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.capacity", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--url", default="localhost:8001")
    add("--ttfa-p95-ms", type=float, default=Slo().ttfa_p95_ms)
    add("--underrun-rate", type=float, default=Slo().underrun_rate)
    add("--loss-rate", type=float, default=Slo().loss_rate)
    add("--lowest-rate", type=float, default=0.25, help="streams per second of the first point")
    add("--highest-rate", type=float, default=MAX_RATE_HZ / 10)
    add("--ratio", type=float, default=1.1, help="how narrow the search ends")
    add("--point-seconds", type=float, default=40.0, help="how long each point is measured")
    add("--budget-seconds", type=float, default=900.0, help="of the whole search")
    add("--price-per-hour", type=float, help="of one server, for the cost of an hour of sound")
    add("--overload", action="store_true", help="also measure 1.5 and 2 times the capacity")
    add("--out", type=Path, default=Path("out/loadtest/capacity"))
    return parser


if __name__ == "__main__":
    stop_on_signals()  # so that the load ends too
    sys.exit(main())
