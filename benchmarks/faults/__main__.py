"""What callers see, and what is left, when a part of the server dies, stops, is flooded or is sent nonsense.

    python -m benchmarks.faults --engines engines/cpu                    (about 80 minutes on two cores)
    python -m benchmarks.faults --short                                  (a few rows of each kind in two minutes)
    python -m benchmarks.faults --only matrix --fault "speech_lm SIGKILL" "guard SIGKILL"

Every row has real servers of its own on loopback ports, which are ended at its end, whatever happens. The record is
written after each row: a run that was cut short goes on where it stopped, with the same settings and revision, and no
tracked file changed. Returns 1 when a row is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.faults import cancels, environment, fuzz, interruptions, kills, matrix, overload, signals
from benchmarks.faults.bench import Bench
from benchmarks.faults.rows import Row
from benchmarks.faults.table import row_cells, table
from benchmarks.record import Results, record_head
from vita_audio.machine import revision
from vita_audio.stopping import stop_on_signals

PARTS = {
    "matrix": matrix.cells, "signals": signals.cells, "environment": environment.cells, "fuzz": fuzz.cells,
    "cancels": cancels.cells, "interruptions": interruptions.cells, "overload": overload.cells, "kills": kills.cells,
}  # fmt: skip
#: How much of each part, in the full form and the short one.
FULL = {
    "kills": 300.0,
    "kill_minutes": 30.0,
    "cancels": 1000.0,
    "conversations": 500.0,
    "overload_s": 60.0,
    "fuzz": 2000.0,
}
SHORT = {"kills": 2.0, "kill_minutes": 0.2, "cancels": 20.0, "conversations": 24.0, "overload_s": 5.0, "fuzz": 60.0}
#: The rows of the short form.
SHORT_FAULTS = frozenset(
    (
        "launcher SIGKILL",
        "SIGTERM to every process",
        "nonsense to the inner models",
        "random cancels",
        "interrupted conversations",
        "random kills",
    )
)


def chosen(
    parts: Sequence[str], faults: Sequence[str], short: bool
) -> Iterator[tuple[str, str, Callable[[Bench], Row]]]:
    """(part, fault, what makes its row)."""
    for part in parts:
        for fault, make in PARTS[part]():
            if fault in faults or (not faults and (not short or fault in SHORT_FAULTS)):
                yield part, fault, make


def kept(path: Path | None, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a record of this revision with these settings, by fault; none where no revision says what ran."""
    now = revision()
    if now == "unknown" or now.endswith("-dirty"):
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    same = all(record.get(name) == value for name, value in {"revision": now, **settings}.items())
    return dict(record.get("rows", {})) if same else {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--engines", type=Path, default=Path("engines/cpu"))
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    add("--fault", nargs="+", default=[], metavar="ROW", help="these rows alone, by name; see --list")
    add("--list", action="store_true", help="name the rows and do nothing")
    add("--short", action="store_true", help="a few rows, small sizes")
    for name, size in FULL.items():
        add(f"--{name.replace('_', '-')}", type=float, help=f"{size:g}; {SHORT[name]:g} with --short")
    add("--seed", type=int, default=1)
    add(
        "--patience", type=float, default=1.0, help="times every limit in seconds, for a machine that is busy otherwise"
    )
    add("--again", action="store_true", help="make rows again that the record has")
    add("--out", type=Path, default=Path("out/faults/faults.json"))
    given = parser.parse_args(arguments)
    sizes = (SHORT if given.short else FULL) | {
        name: value for name in FULL if (value := getattr(given, name)) is not None
    }
    for name, value in {**sizes, "patience": given.patience}.items():
        if not 0 < value < math.inf:
            parser.error(f"--{name.replace('_', '-')}: {value:g} is not valid: above 0 (--only chooses parts)")
    settings = {"engines": str(given.engines), "seed": given.seed, "patience": given.patience, "sizes": sizes}
    rows = {} if given.again else kept(given.out, settings)
    wanted = list(chosen(given.only, given.fault, given.short))
    if unknown := set(given.fault) - {fault for _, fault, _ in wanted}:
        parser.error(f"--fault: {', '.join(sorted(unknown))} is not a row of {', '.join(given.only)}: see --list")
    if given.list:
        print("\n".join(f"{part}: {fault}" for part, fault, _ in wanted))
        return 0
    bench = Bench(given.engines, given.seed, given.patience, sizes)
    results = Results(given.out, {**record_head("benchmarks.faults", arguments), **settings, "rows": rows})
    console = Console(stderr=True, soft_wrap=True)
    for part, fault, make in wanted:
        if fault in rows:
            continue
        begin_s = time.monotonic()
        try:
            row = make(bench).to_dict()
        except Exception as error:  # noqa: BLE001 - one row does not end a campaign of an hour
            row = Row(part, fault, "-", wrong=(f"not measured: {type(error).__name__}: {error}",)).to_dict()
        rows[fault] = {**row, "seconds": round(time.monotonic() - begin_s, 1)}
        results.save(rows=rows)
        console.print(f"{part}: {' | '.join(row_cells(rows[fault]))} ({rows[fault]['seconds']:g} s)", markup=False)
    print(table(results.fields))
    return 1 if any(rows[fault]["wrong"] for _, fault, _ in wanted) else 0


if __name__ == "__main__":
    stop_on_signals()  # servers end with it
    sys.exit(main())
