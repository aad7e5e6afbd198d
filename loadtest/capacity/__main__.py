"""How many callers one server carries: `python -m loadtest.capacity --ttfa-p95-ms 300 --underrun-rate 0.001`.

Searches the highest arrival rate that keeps the promise, fits a model to what it saw, and predicts from it; stops by
itself within `--budget-seconds`. Other options are passed on to `python -m loadtest` (`--mix`, `--mode`, `--seed`).
Exit codes: 0 answered, 1 not even the lowest rate keeps the promise, 2 a wrong option or no server.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from loadtest.capacity.answer import Limits, answer, page, pictures, text
from loadtest.capacity.probe import DRAIN_S, OVERHEAD_S, LoadPoint, run_point
from loadtest.capacity.search import search
from loadtest.errors import wrong
from loadtest.options import MAX_RATE_HZ, check_rate
from loadtest.slo import Slo
from serving.settings import default_queue, default_slots
from vita_audio.contract.errors import VitaError

#: The held-out point, as a share of what was found: where a service would be run.
HELD_OUT = 0.8
OVERLOAD = (1.0, 1.5, 2.0)
#: Transcripts make no sound, and the model counts work by the sound it makes.
_MIX = "chat_voice=5,chat_text=2,tts=3"


def main(arguments: list[str] | None = None) -> int:
    options, passed_on = _parser().parse_known_args(arguments)
    slo = Slo(options.ttfa_p95_ms, options.underrun_rate, options.loss_rate)
    limits = Limits(options.slots, options.queue, options.price_per_hour)
    try:
        check_rate("--lowest-rate", options.lowest_rate)
        check_rate("--highest-rate", options.highest_rate)
        if options.point_seconds < 5 or options.budget_seconds < options.point_seconds:
            raise wrong("--point-seconds", options.point_seconds, "it is from 5 to --budget-seconds")
        found = find(options, slo, limits, passed_on)
        write(options.out, found)
    except (VitaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(found))
    print(f"{options.out / 'capacity.html'}")
    return 0 if found["capacity_per_s"] else 1


def find(options: argparse.Namespace, slo: Slo, limits: Limits, passed_on: list[str]) -> dict[str, object]:
    """Search, held-out point, overload, answer.

    Raises:
        LoadTestError: a load point could not be measured.
    """
    promise = [
        "--slo-ttfa-p95-ms", repr(slo.ttfa_p95_ms), "--slo-underrun-rate", repr(slo.underrun_rate),
        "--slo-loss-rate", repr(slo.loss_rate), "--mix", _MIX, *passed_on,
    ]  # fmt: skip
    warm_up_s = min(5.0, options.point_seconds / 4)
    point_s = options.point_seconds + warm_up_s + DRAIN_S / 2 + OVERHEAD_S
    later = 1 + (len(OVERLOAD) if options.overload else 0)  # points measured after the search
    end_s = time.monotonic() + options.budget_seconds

    def load(rate_hz: float) -> LoadPoint:
        folder = options.out / f"rate-{rate_hz:.4f}"
        point = run_point(options.url, rate_hz, options.point_seconds, warm_up_s, folder, promise)
        print(f"{rate_hz:.3f} streams/s: {'kept' if point.kept else 'broken'}", file=sys.stderr)
        return point

    def probe(rate_hz: float) -> tuple[bool, LoadPoint]:
        point = load(rate_hz)
        return point.kept, point

    result = search(
        probe,
        options.lowest_rate,
        options.highest_rate,
        has_time=lambda: time.monotonic() + (1 + later) * point_s < end_s,
        ratio=options.ratio,
    )
    held_out = load(HELD_OUT * result.kept_hz) if result.kept_hz else None
    overload = [load(share * result.kept_hz) for share in OVERLOAD] if options.overload and result.kept_hz else []
    return answer(result, held_out, overload, slo, limits)


def write(folder: Path, found: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "capacity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "capacity.html").write_text(page(found), encoding="utf-8")
    for name, svg in pictures(found).items():
        (folder / name).write_text(svg, encoding="utf-8")


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
    add("--slots", type=int, default=default_slots(), help="what the server was started with")
    add("--queue", type=int, default=default_queue(), help="what the server was started with")
    add("--price-per-hour", type=float, help="of one server, for the cost of an hour of sound")
    add("--overload", action="store_true", help="also measure 1, 1.5 and 2 times the capacity")
    add("--out", type=Path, default=Path("out/loadtest/capacity"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
