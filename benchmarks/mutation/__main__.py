"""Puts small bugs into a copy of the code, one at a time, and reports those that no test notices: `make mutation`.

    python -m benchmarks.mutation --minutes 60            (200 mutants of all rooms; again: goes on where it stopped)
    python -m benchmarks.mutation --rooms generation      (those of one room)
    python -m benchmarks.mutation --retry                 (the survivors again, with the tests as they are now)

The session is in out/mutation: another one is begun with --begin. Exit code 1: tests fail without a mutant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mutation.report import report
from benchmarks.mutation.rooms import ROOMS
from benchmarks.mutation.session import CannotRun, Session
from vita_audio.machine import ROOT
from vita_audio.stopping import stop_on_signals


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [room.name for room in ROOMS]
    parser.add_argument(
        "--rooms", nargs="+", choices=names, default=names, metavar="ROOM", help="whose mutants are run (all)"
    )
    parser.add_argument("--mutants", type=int, default=200, help="size of a sample that is begun (200)")
    parser.add_argument("--seed", type=int, default=0, help="of a sample that is begun (0)")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no mutant after so long (60)")
    parser.add_argument("--begin", action="store_true", help="begin a sample; one in --out is dropped")
    parser.add_argument("--retry", action="store_true", help="take the tests anew and run the survivors again")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "mutation", help="the session's folder")
    options = parser.parse_args(arguments)
    session = Session(ROOT, options.out.absolute())
    os.nice(10)  # a run is long: what else the machine does goes first
    if options.begin or not session.begun:
        session.begin(options.mutants, options.seed)
    elif options.retry:
        print(f"{session.retry()} survivors are run again", flush=True)
    try:
        session.run(options.rooms, options.minutes, lambda line: print(line, flush=True))
    except CannotRun as error:
        print(f"mutation: {error}", file=sys.stderr)
        return 1
    text = report(session.mutants())
    (options.out / "report.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    stop_on_signals()  # the mutant is taken out, and its tests end
    sys.exit(main())
