"""Counts of the conformance run: golden cases passed, by implementation (`build_engines.conformance` lists the cases).

python -m benchmarks.conformance --golden tests/golden --out out/conformance.json
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

from benchmarks.record import Results, record_head
from build_engines.conformance.__main__ import run_checks
from vita_audio.machine import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden")
    parser.add_argument("--out", type=Path, help="also write the counts as JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the cases are tiny: threads would only wait for each other
    results = Results(options.out, record_head("benchmarks.conformance"))
    found = list(run_checks(options.golden))
    passed, cases = (Counter(r.implementation for r in found if r.passed or every) for every in (False, True))
    rows = [{"implementation": name, "passed": passed[name], "cases": cases[name]} for name in sorted(cases)]
    results.save(rows=rows, failed=[f"{r.case}, {r.implementation}: {r.detail}" for r in found if not r.passed])
    for row in rows:
        print(f"{row['implementation']}: {row['passed']} of {row['cases']}")
    return 0 if found and sum(passed.values()) == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
