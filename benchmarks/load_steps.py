"""A load test in steps against a server of its own: TTFA, underruns and losses at a fifth to all of a rate.

    python -m benchmarks.load_steps --engines engines/cpu --rate 1.5

`make loadtest` is the same against a server that runs. Open loop; the default rate is inside the capacity of two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import Results, record_head
from loadtest.report.files import read_figures
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.machine import ROOT

#: Streams per second at the last step.
RATE_HZ = 1.0
KEPT = ("elapsed_s", "streams", "slo", "errors", "phases", "scenarios", "generators")


def run_load(url: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """`python -m loadtest` against a server: its figures; the report is in `folder`.

    Raises:
        VitaError: the run could not be made or ended early.
    """
    command = [sys.executable, "-m", "loadtest", "--url", url, "--out", str(folder), *arguments]
    made = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode:
        raise VitaError(f"the load test ended with {made.returncode}: {made.stdout.strip()[-500:]}")
    return read_figures(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--rate", type=float, default=RATE_HZ, help="streams per second at the last step")
    parser.add_argument("--run-time", type=float, default=110.0, help="seconds, warm-up included")
    parser.add_argument("--warm-up", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("out/load_steps/load_steps.json"), help="report beside it")
    options = parser.parse_args()
    results = Results(options.out, record_head("benchmarks.load_steps"))
    # The same requests come again and again: their prompts must not be found in a slot.
    settings = ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0, prefix_cache="off")
    with TritonServer(settings) as server:
        figures = run_load(
            server.grpc_url, options.out.with_suffix("").resolve(), "--rate", repr(options.rate), "--shape", "steps",
            "--run-time", repr(options.run_time), "--warm-up", repr(options.warm_up), "--prebuffer-ms", "60",
            "--slo-ttfa-p95-ms", "300",
        )  # fmt: skip
    results.save(**{name: figures[name] for name in KEPT})
    for check in figures["slo"]:
        print(f"{check['name']}: {check['value']}, promised at most {check['limit']} {check['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
