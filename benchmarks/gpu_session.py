"""Everything a short session on a GPU machine should do, in one command that can be repeated:

    python -m benchmarks.gpu_session --out results            (about 9 minutes; needs PyTorch for CUDA and pytest)

1. The GPU tests of the fixed-shape engine. 2. The golden cases on the GPU, where their folder is at hand. 3. The
paper's tables at 7B and 0.5B; then 7B again with torch.compile. Each step is a process with its own time limit, so a
fault or a hang costs that step alone. Results and one log go to --out. `--size tiny` walks the same way on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
GPU_TESTS = "tests/test_torch_cuda_gpu.py"


@dataclass(frozen=True, slots=True)
class Step:
    """One process. `limit_s` ends it; it gets less when the session has less left. `bounded`: takes --budget."""

    name: str
    arguments: list[str]
    limit_s: float
    bounded: bool = False


def plan(size: str, golden: Path | None, out: Path) -> list[Step]:
    """The steps in order of worth: what comes late may be cut off."""
    tests = Step("tests", ["-m", "pytest", "-q", "--noconftest", GPU_TESTS], 110)
    golden_cases = Step("golden", ["-m", "benchmarks.gpu_golden", str(golden)], 60)
    tables = ["-m", "benchmarks.paper_tables", "--out", str(out)]
    if size == "tiny":
        tiny = [*tables, "--size", "tiny", "--device", "cpu", "--repeats", "1", "--streams", "2", "--tokens", "12"]
        steps = [tests, golden_cases, Step("tables", tiny, 200, bounded=True)]
    else:
        quick = ["--parts", "table5", "first_chunk", "steps"]
        steps = [
            tests,
            golden_cases,
            Step("tables 7b", [*tables, "--size", "7b", "--baseline-tokens", "512"], 260, bounded=True),
            Step("tables 0.5b", [*tables, "--size", "0.5b", "--baseline-tokens", "512"], 100, bounded=True),
            Step("tables 7b compiled", [*tables, "--size", "7b", "--compile", *quick], 110, bounded=True),
        ]
    return steps if golden else [step for step in steps if step is not golden_cases]


def run(step: Step, log: Path, left_s: float) -> dict[str, object]:
    """Run one step; its output goes to the end of `log`, and the last lines of it to the screen."""
    limit_s, start = min(step.limit_s, left_s), time.perf_counter()
    # A bounded step is asked to end a little before it is ended.
    arguments = [*step.arguments, "--budget", f"{0.85 * limit_s:.0f}"] if step.bounded else step.arguments
    with log.open("a") as file:
        begin = file.tell()
        try:
            process = subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit_s
            )
            code: int | str = process.returncode
        except subprocess.TimeoutExpired:
            code = "timed out"
    took = time.perf_counter() - start
    print(f"== {step.name}: {code}, {took:.0f} s")
    print("\n".join(log.read_bytes()[begin:].decode(errors="replace").splitlines()[-60:]), flush=True)
    return {"step": step.name, "exit": code, "seconds": round(took, 1)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--golden", type=Path, default=None, help="folder of golden data, if it is on this machine")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds for everything")
    options = parser.parse_args(arguments)
    if options.size == "real" and not torch.cuda.is_available():
        parser.error("no CUDA device; --size tiny shows on a CPU that the session runs")
    options.out.mkdir(parents=True, exist_ok=True)
    start, done, log = time.perf_counter(), list[dict[str, object]](), options.out / "gpu_session.log"
    log.unlink(missing_ok=True)
    golden = options.golden.resolve() if options.golden else None
    for step in plan(options.size, golden, options.out.resolve()):
        left_s = options.budget - (time.perf_counter() - start)
        if left_s < 20:
            done.append({"step": step.name, "exit": "not run: out of time", "seconds": 0.0})
            continue
        done.append(run(step, log, left_s))
    (options.out / "gpu_session.json").write_text(json.dumps(done, indent=1) + "\n")
    for row in done:
        print(f"{row['step']}: {row['exit']} ({row['seconds']} s)")
    return 0 if all(row["exit"] == 0 for row in done) else 1


if __name__ == "__main__":
    sys.exit(main())
