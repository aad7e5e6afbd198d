"""Everything that a short loan of a GPU should do, in order of worth, in one command that can be repeated:

    python -m benchmarks.gpu_session --list                                (phases, steps, seconds)
    python -m benchmarks.gpu_session --phase first-light --out results     (needs PyTorch for CUDA and pytest)
    python -m benchmarks.gpu_session --phase serve --out results           (the real server: deploy/offline)
    python -m benchmarks.gpu_session --phase speed --out results

The first two fit a quarter of an hour with the start of the machine. Each step is a process with its own time limit, so
a fault or a hang costs that step alone. Results and one log are written as they come: a session that is killed keeps
what it had. `--size tiny` walks the same steps on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import expectations, gpu_aims
from benchmarks.record import Results, record_head
from vita_audio.machine import describe_device
from vita_audio.stopping import stop_on_signals

ROOT = Path(__file__).resolve().parent.parent
GPU_TESTS = ("-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "tests/engines/torch_cuda/test_gpu.py")
#: The tests that say whether anything measured after them means something, and those that take long to compile.
_FIRST_TESTS = "captured_equals_eager or audio_graphs or 28x4x128-bfloat16"
_SLOW_TESTS = "28x4x128-float32"
#: Parts of the tables that first light measures, the most telling first, and those that only a longer run has time for.
_EARLY_PARTS = ("steps", "bisect", "table5", "first_chunk", "profile", "prepare")
_LATE_PARTS = ("baseline", "batch", "heads", "host")
#: What stands side by side in first light: the engine with all it has, without its kernels, and with FP8 weights.
_VARIANTS = ("kernels", "references", "fp8")
_LEAST_S = 8.0  # below this a step would end before PyTorch is loaded
_GRACE_S = 12.0  # what a step may take to end its server and clear up


@dataclass(frozen=True, slots=True)
class Step:
    """One process.

    Attributes:
        name: unique in its phase.
        arguments: of the Python interpreter.
        seconds: planned; the step is ended when it takes longer (all of a phase stretch with a larger --budget).
        expected: what was predicted, printed beside what came out.
        bounded: takes --budget and ends by itself a little earlier.
        needs: steps without which it is skipped.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    expected: str = ""
    bounded: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of a session; `golden` and `checkpoint` are None where they are not on this machine."""

    out: Path
    work: Path
    golden: Path | None
    checkpoint: Path | None


def phases(size: str, places: Places) -> dict[str, list[Step]]:
    """Phase -> its steps in order of worth: what comes late may be cut off."""
    return {
        "first-light": _first_light(size, places),
        "serve": _serve(size, places),
        "speed": _speed(size, places),
    }


def _tables(size: str, places: Places, *more: str) -> tuple[str, ...]:
    made = ("-m", "benchmarks.paper_tables", "--out", str(places.out), "--size", size)
    if size == "tiny":
        return (*made, "--device", "cpu", "--repeats", "1", "--bursts", "2", *more, "--streams", "2", "--tokens", "12")
    return (*made, *more)


def _first_light(size: str, places: Places) -> list[Step]:
    golden = Step("golden", ("-m", "benchmarks.gpu_golden", str(places.golden)), 30, "float32: every token of them")
    machine = Step("machine", ("-m", "vita_audio.machine"), 10, "libpython3.12, Python.h, 16 GiB of /dev/shm")
    if size == "tiny":
        parts = ("--parts", *_EARLY_PARTS, "audio")
        return [
            machine,
            Step("first tests", (*GPU_TESTS, "-k", _FIRST_TESTS), 60, "skipped: no GPU"),
            Step("tables tiny", _tables(size, places, *parts), 90, "it runs", bounded=True),
            *([golden] if places.golden else []),
        ]
    core = ("--parts", *_EARLY_PARTS, "--streams", "64", "--tokens", "256", "--each", "6", "--repeats", "10")
    audio = ("--parts", "audio", "--name", "audio", "--streams", "8")
    others = f"not ({_FIRST_TESTS} or {_SLOW_TESTS})"
    tables = _tables("7b", places, *core, "--variants", *_VARIANTS)
    return [
        machine,
        Step("first tests", (*GPU_TESTS, "-k", _FIRST_TESTS), 50, "captured equals eager, attention in bf16"),
        Step("tables 7b", tables, 190, _speed_words(), bounded=True),
        Step("audio", _tables("7b", places, *audio), 70, _audio_words(), bounded=True),
        Step("tests", (*GPU_TESTS, "-k", others), 80, "every token of the reference"),
        *([golden] if places.golden else []),
    ]


def _speed_words() -> str:
    """Tokens/s at batch 1 by variant."""
    parts = []
    for variant, by_streams in expectations.TOKENS_PER_S.items():
        if variant != "engine":  # the name in older records
            parts.append(f"{variant}: " + ", ".join(f"{m} {h} {s:.0f}" for (m, h), s in by_streams[1].items()))
    return f"tokens/s at batch 1, {'; '.join(parts)}"


def _audio_words() -> str:
    return f"first chunk {expectations.AUDIO_TF32_MS:g} ms, half precision {expectations.AUDIO_HALF_MS:g} ms"


def _serve(size: str, places: Places) -> list[Step]:
    """Engines are built there, the real server is started, and real clients ask it."""
    large = places.work / "7b"
    if size == "tiny":
        asks = ("--streams", "2", "--slots", "2", "--modes", "boost", "--seconds", "1.5", "--processes", "1")
        write = ("--size", "tiny", "--device", "cpu", "--streams", "2", "--context-tokens", "512", "--out", str(large))
        return [
            Step("build 7b", ("-m", "build_engines.random_engines", *write), 40),
            _serving("7b", large, places, 75, "it is served", *asks, "--tasks", "chat", "--device", "cpu"),
        ]
    ready = "ready in 35 s; TTFA P50 at most 60 ms at 1 stream, P95 at most 100 at 32; 64 faster than real time"
    write = ("--size", "7b", "--head", "audio", "--streams", "64", "--context-tokens", "4096", "--out", str(large))
    shorter = "shorter waits with several streams, as models do not take turns on the GPU"
    few = ("--tasks", "tts", "--modes", "boost", "--streams", "1", "32", "64", "--seconds", "6", "--max-tokens", "150")
    return [
        Step("build 7b", ("-m", "build_engines.random_engines", *write), 40, "26 s"),
        _serving("7b", large, places, 75, ready, *few),
        _serving("7b, MPS", large, places, 70, shorter, *few, "--mps"),
        _serving("7b, one process", large, places, 70, shorter, *few, "--one-process"),
    ]


def _small(places: Places) -> list[Step]:
    """The small checkpoint built there and served: its sound means something."""
    if places.checkpoint is None:
        return []
    small = places.work / "small"
    build = ("--checkpoint", str(places.checkpoint), "--target", "gpu", "--engine", "torch_cuda", "--head", "full")
    few = ("--tasks", "chat", "tts", "--modes", "boost", "turbo", "--streams", "1", "8", "64", "--seconds", "3")
    return [
        Step("build small", ("-m", "build_engines", *build, "--out", str(small)), 20, "11 s"),
        _serving("small", small, places, 80, "ready in 21 s", *few),
    ]


def _serving(name: str, engines: Path, places: Places, seconds: float, expected: str, *more: str) -> Step:
    """The benchmark of a served folder of engines; `name` begins with the build that makes it."""
    record = places.out / f"serving_{name.replace(', ', '_').replace(' ', '_').lower()}.json"
    arguments = ("-m", "benchmarks.gpu_serving", "--engines", str(engines), "--out", str(record), *more)
    return Step(f"serve {name}", arguments, seconds, expected, True, (f"build {name.split(',')[0]}",))


def _speed(size: str, places: Places) -> list[Step]:
    """The paper's tables in full, and what first light had no time for."""
    if size == "tiny":
        return [
            Step("tables tiny", _tables(size, places, "--parts", *_LATE_PARTS, "--name", "speed"), 60, bounded=True)
        ]
    more = ("--streams", "8", "32", "64", "--baseline-tokens", "512", "--variants", *_VARIANTS)
    quick = ("--parts", "steps", "table5", "first_chunk", "--tokens", "512", "--streams", "8")
    late = _tables("7b", places, "--parts", *_LATE_PARTS, "table5", *more)
    return [
        Step("tests", GPU_TESTS, 100, "all pass"),
        Step("tables 7b", late, 300, bounded=True),
        Step("tables 0.5b", _tables("0.5b", places, *quick), 80, bounded=True),
        *_small(places),
    ]


def run(step: Step, limit_s: float, log: Path) -> dict[str, object]:
    """Run one step; its output goes to the end of `log`, and the last lines of it to the screen."""
    start = time.perf_counter()
    # A bounded step is asked to end a little before it is ended.
    arguments = [*step.arguments, "--budget", f"{0.9 * limit_s - 2:.0f}"] if step.bounded else list(step.arguments)
    with log.open("a") as file:
        begin = file.tell()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = "timed out"
        finally:
            _end(process)
    took = time.perf_counter() - start
    print(f"== {step.name}: {code}, {took:.0f} of {limit_s:.0f} s. Expected: {step.expected or '-'}")
    print("\n".join(log.read_bytes()[begin:].decode(errors="replace").splitlines()[-60:]), flush=True)
    return {"step": step.name, "exit": code, "seconds": round(took, 1), "expected": step.expected}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it started: a server in a session of its own ends when its launcher gets a signal."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def walk(phase: str, steps: Sequence[Step], budget_s: float, out: Path) -> bool:
    """Run the steps of a phase within `budget_s`; False when one failed or was left out."""
    start, done, log = time.perf_counter(), list[dict[str, object]](), out / f"gpu_{phase}.log"
    log.unlink(missing_ok=True)
    about = record_head("benchmarks.gpu_session", machine=describe_device())
    results = Results(out / f"gpu_{phase}.json", {**about, "phase": phase})
    stretch = max(1.0, budget_s / sum(step.seconds for step in steps))
    for step in steps:
        left_s = budget_s - (time.perf_counter() - start)
        reasons = [str(row["exit"]) for row in done if row["step"] in step.needs and row["exit"] != 0]
        if reasons or left_s < min(_LEAST_S, step.seconds):
            needed = f"not run: needs {', '.join(step.needs)}, which came to: {', '.join(reasons)}"
            reason = needed if reasons else "not run: out of time"
            done.append({"step": step.name, "exit": reason, "seconds": 0.0, "expected": step.expected})
        else:
            done.append(run(step, min(step.seconds * stretch, left_s), log))
        results.save(seconds=round(time.perf_counter() - start, 1), steps=done)
    print(gpu_aims.table(gpu_aims.Records.read(out)))
    for row in done:
        print(f"{phase} / {row['step']}: {row['exit']} ({row['seconds']} s)", flush=True)
    return all(row["exit"] == 0 for row in done)


def list_steps(plan: dict[str, list[Step]]) -> str:
    lines = []
    for phase, steps in plan.items():
        lines.append(f"{phase}: {sum(step.seconds for step in steps):.0f} s")
        lines += [f"  {step.seconds:4.0f} s  {step.name}: {step.expected or '-'}" for step in steps]
    return "\n".join(lines)


def _seconds(text: str) -> float:
    """Raises ArgumentTypeError unless it is a positive number."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not valid: a positive number of seconds")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", nargs="+", choices=("first-light", "serve", "speed"), default=["first-light"])
    parser.add_argument("--list", action="store_true", help="print the steps with their seconds and end")
    parser.add_argument("--only", nargs="+", help="these steps of the phase alone")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden" / "language_model")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "small")
    parser.add_argument("--budget", type=_seconds, help="seconds for a phase, instead of the sum of its steps")
    options = parser.parse_args(arguments)
    checkpoint = options.checkpoint.resolve() if options.checkpoint.is_dir() else None
    golden = options.golden.resolve() if options.golden.is_dir() else None
    out, work = options.out.resolve(), Path(tempfile.mkdtemp(prefix="vita-gpu-session-"))
    try:
        plan = phases(options.size, Places(out, work, golden, checkpoint))
        if options.list:
            print(list_steps(plan))
            return 0
        if options.size == "real" and not torch.cuda.is_available():
            parser.error("no CUDA device; --size tiny shows on a CPU that the session runs")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: {out} is no folder that can be written to ({error.strerror})")
        good = True
        for phase in options.phase:
            steps = plan[phase]
            if options.only:
                unknown = sorted(set(options.only) - {step.name for step in steps})
                if unknown:
                    parser.error(f"--only: {unknown[0]!r} is no step of {phase}; --list shows them")
                steps = [step for step in steps if step.name in options.only]
            good &= walk(phase, steps, options.budget or sum(step.seconds for step in steps), out)
        return 0 if good else 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    stop_on_signals()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
