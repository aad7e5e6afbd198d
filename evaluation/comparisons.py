"""What the mode and FP8 weights cost a checkpoint in quality, case by case, on held-out data: one command.

    python -m evaluation.comparisons --checkpoint checkpoints/small --out out/comparisons

Makes the held-out data and engines of the checkpoint and of its weights rounded to FP8, then runs three suites in
boost, in turbo and in boost with FP8. Writes comparisons.json, and for each run what `--suite` writes. The same command
goes on after a stop; another checkpoint gets a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluation import suite_command
from evaluation.command import run_command
from evaluation.errors import EvaluationError
from evaluation.held_out import load_cases
from evaluation.layouts import write_layouts
from evaluation.suite_report import FIGURES
from training.config import load_config
from training.data.generate import run as make_data
from training.data.settings import DataConfig
from vita_audio.checkpoint.file_records import checkpoint_sha256
from vita_audio.machine import describe_machine, revision

SUITES = ("librispeech", "libritts", "web-questions")
RECORD = "comparisons.json"
#: A training leaves out the first 800 sentences (`DataConfig.test_tts`, `test_asr`): half for each of two suites.
MOST = 400


@dataclass(frozen=True, slots=True)
class Run:
    """`beside`: the run whose answers this one's are compared with."""

    name: str
    weights: str
    mode: str
    beside: str = ""


RUNS = (
    Run("boost", "float32", "boost"),
    Run("turbo", "float32", "turbo", "boost"),
    Run("fp8", "fp8", "boost", "boost"),
)


def held_out_config(limit: int) -> DataConfig:
    """Nothing but `limit` cases of each suite, of the sentences and questions that trainings leave out."""
    data = load_config("small").data
    kept = {"seed", "first_epoch", "processes"}
    none: dict[str, Any] = {field.name: 0 for field in fields(data) if field.type == "int" and field.name not in kept}
    return replace(data, **none | {"epochs": 1, "test_tts": limit, "test_asr": limit, "test_spoken_chat": limit})


def compare_all(options: argparse.Namespace, console: Console) -> None:
    """Raises EvaluationError or another VitaError, one line each; what was done is kept."""
    if not 1 <= options.limit <= MOST:
        raise EvaluationError(f"--limit {options.limit} is not valid: 1 to {MOST}")
    checkpoint = checkpoint_sha256(options.checkpoint)[:12]
    suites = options.out / f"suites-{options.limit}"
    if not suites.exists():
        data = options.out / f"data-{options.limit}"
        make_data(held_out_config(options.limit), data, console)
        write_layouts(load_cases(data, options.limit), suites)
    place = options.out / f"{checkpoint}-{options.limit}"
    engines = _engines(options.checkpoint, place)
    about = {"checkpoint": f"{options.checkpoint.name} ({checkpoint})", "judge": options.judge, "notes": options.note}
    about |= {"machine": describe_machine(), "revision": revision()}
    changes = []
    for suite in options.suites:
        for each in RUNS:
            out = place / suite / each.name
            console.print(f"{suite}, {each.name}", style="bold")
            asked = ["--suite", suite, "--data", str(suites), "--engines", str(engines[each.weights])]
            asked += ["--mode", each.mode, "--concurrency", str(options.concurrency), "--out", str(out)]
            asked += ["--judge", options.judge, *(f"--note={note}" for note in options.note)]
            if each.beside:
                asked += ["--compare", str(place / suite / each.beside / FIGURES)]
            suite_command.run(suite_command.make_parser().parse_args(asked), console)
            figures = json.loads((out / FIGURES).read_text(encoding="utf-8"))
            names = {"suite": suite, "run": each.name, "beside": each.beside}
            changes += [names | {"skipped": figures["skipped"]} | change for change in figures["changes"]]
            _write(place / RECORD, {**about, "changes": changes})
    console.print(f"all comparisons: {place / RECORD}")


def _engines(checkpoint: Path, place: Path) -> dict[str, Path]:
    """Engines by weights; those that are there already are checked by the build and kept."""
    rounded = place / "fp8"
    if not rounded.exists():
        _module("build_engines.torch_cuda.simulate_fp8", str(checkpoint), "--out", str(rounded))
    found = {}
    for weights, bundle in (("float32", checkpoint), ("fp8", rounded)):
        found[weights] = place / f"engines-{weights}"
        _module("build_engines", "--checkpoint", str(bundle), "--target", "cpu", "--out", str(found[weights]))
    return found


def _module(name: str, *arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", name, *arguments], stdin=subprocess.DEVNULL, check=False).returncode:
        raise EvaluationError(f"python -m {name} failed; its line is above")


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"date": str(date.today()), **record}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.comparisons",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/small"))
    parser.add_argument("--out", type=Path, default=Path("out/comparisons"))
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--limit", type=int, default=200, help="cases of a suite")
    parser.add_argument("--concurrency", type=int, default=2, help="requests in flight")
    parser.add_argument("--judge", default="pocketsphinx", help="as of --suite")
    parser.add_argument("--note", action="append", default=[], help="for the reports, such as what else ran meanwhile")
    options = parser.parse_args(arguments)
    return run_command(partial(compare_all, options), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
