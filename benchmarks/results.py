"""Measures every CPU table of docs/results.md on this revision, and writes the page: `make results`.

    python -m benchmarks.results --engines engines/cpu              (about 35 minutes on two cores)
    python -m benchmarks.results --only serving soak                (these alone)
    python -m benchmarks.results --quick                            (all in a few minutes: shows that it runs)

Each table is a command of its own whose record is kept at once: a run that was cut short goes on where it stopped. A
record of another revision is measured again. The GPU tables come from the records under benchmarks/results/gpu, and
those of hours (LONG) from what their own commands wrote last; only the page is made of them here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.balancer import NOT_INSTALLED
from benchmarks.results_page import page
from server.haproxy import find_haproxy
from vita_audio.machine import ROOT, describe_machine, revision

RECORDS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One command. `seconds`: what it takes on two cores; it is ended after three times as long."""

    name: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    seconds: float
    takes_engines: bool = True
    pictures: tuple[str, ...] = ()


MEASUREMENTS = (
    Measurement(
        "serving", (),
        ("--streams", "1", "2", "--modes", "boost", "--requests", "2", "--slices", "1", "--max-tokens", "60"), 180,
    ),
    Measurement(
        "load_steps", (), ("--run-time", "15", "--warm-up", "2"), 150,
        pictures=("load_steps/ttfa.svg", "load_steps/lead.svg"),
    ),
    Measurement(
        "soak", ("--rate", "1.6", "--minutes", "5"),
        ("--rate", "1", "--minutes", "0.4", "--warm-up", "5", "--longest", "1"), 400,
        pictures=("soak_memory.svg", "soak_streams.svg"),
    ),
    Measurement("scale_out", (), ("--phase-s", "2", "--callers", "4", "--max-tokens", "60"), 120),
    Measurement(
        "conversation", (), ("--turns", "2", "--seconds", "2", "--talkers", "4", "--repeats", "1"), 240,
    ),
    Measurement(
        "gateway", (), ("--repeats", "3", "--sessions", "4", "--seconds", "2", "--interruptions", "2"), 240,
    ),
    Measurement("warm_up", (), ("--starts", "1", "--rounds", "2", "--requests", "text", "--streams", "1"), 480),
    Measurement("language_model", (), ("--tokens", "64", "--repeats", "1", "--streams", "1"), 120),
    Measurement("seams", (), ("--tokens", "40", "--seeds", "1"), 120),
    Measurement(
        "conformance", ("--golden", "tests/golden"), ("--golden", "tests/golden/language_model/mctp4"), 240,
        takes_engines=False,
    ),
)  # fmt: skip

#: Tables that take an hour or more, and the arguments that measure them. The newest record is shown.
LONG = {
    "faults": "benchmarks.faults",
    "long_soak": "benchmarks.soak --rate 1.3 --minutes 120 --kill-every 600",
}


def newest(name: str) -> dict[str, Any]:
    """The last record of a long measurement with its folder, or how it is made."""
    for path in sorted(RECORDS.glob(f"cpu/*/{name}.json"), reverse=True):
        return {**json.loads(path.read_text(encoding="utf-8")), "folder": str(path.parent)}
    made = f"`python -m {LONG[name]} --out out/{name}.json` makes {name}.json and {name}_*.svg"
    return {"not_run": f"{made}, which belong into benchmarks/results/cpu/DATE"}


def command(each: Measurement, engines: Path, out: Path, quick: bool) -> list[str]:
    """Arguments of the interpreter."""
    took = ["--engines", str(engines)] if each.takes_engines else []
    return ["-m", f"benchmarks.{each.name}", *took, *(each.quick if quick else each.arguments), "--out", str(out)]


def kept(path: Path, wanted: str) -> dict[str, Any] | None:
    """A whole record of this revision, or None."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("revision") == wanted else None


def missing(name: str) -> str:
    """Why a table cannot be measured on this machine; empty where it can."""
    return NOT_INSTALLED if name == "scale_out" and find_haproxy() is None else ""


def run(each: Measurement, engines: Path, work: Path, folder: Path, quick: bool) -> str:
    """Measure one table: its record, and pictures, are moved into `folder` when it is whole. Why not, or empty."""
    out, limit_s = work / f"{each.name}.json", 3 * each.seconds
    out.unlink(missing_ok=True)
    with (work / f"{each.name}.log").open("w") as log:
        try:
            made = subprocess.run(
                [sys.executable, *command(each, engines, out.relative_to(ROOT), quick)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not finished after {limit_s:g} s"
    if made.returncode or not out.exists():
        said = Path(log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
        return f"ended with {made.returncode}: {said[-1]}"
    for picture in each.pictures:
        if (work / picture).exists():
            shutil.copy(work / picture, folder / picture.replace("/", "_"))
    out.replace(folder / out.name)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when a table could not be measured for another reason than what this machine lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.name for each in MEASUREMENTS]
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="TABLE", help=", ".join(names))
    parser.add_argument("--again", action="store_true", help="measure tables again that this revision has")
    parser.add_argument("--quick", action="store_true", help="seconds for each table, under out/results_quick only")
    parser.add_argument("--page-only", action="store_true", help="measure nothing; write the page from what is there")
    options = parser.parse_args(arguments)
    now, wanted = datetime.now(timezone.utc), revision()
    work = ROOT / "out" / ("results_quick" if options.quick else "results")
    folder = work / "records" if options.quick else RECORDS / "cpu" / now.date().isoformat()
    work.mkdir(parents=True, exist_ok=True)
    records: dict[str, dict[str, Any]] = {}
    failed = False
    for each in MEASUREMENTS:
        found = None if options.again and each.name in options.only else kept(folder / f"{each.name}.json", wanted)
        reason = missing(each.name) if found is None else ""
        if found is None and not reason and not options.page_only and each.name in options.only:
            folder.mkdir(parents=True, exist_ok=True)
            print(f"{each.name}: about {each.seconds:g} s", flush=True)
            start = time.perf_counter()
            reason = run(each, options.engines, work, folder, options.quick)
            failed |= bool(reason)
            print(f"{each.name}: {reason or 'measured'} ({time.perf_counter() - start:.0f} s)", flush=True)
            found = kept(folder / f"{each.name}.json", wanted)
            if found is None and not reason:
                reason = "the source changed while it was measured"
        records[each.name] = found or {"not_run": reason or "not measured on this revision"}
    records |= {name: newest(name) for name in LONG}
    about = {"machine": describe_machine(), "revision": wanted, "date": now.date().isoformat()}
    out = work / "results.md" if options.quick else PAGE
    out.write_text(page(records, about, RECORDS / "gpu", folder, out.parent), encoding="utf-8")
    print(out.relative_to(ROOT))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
