"""Whole runs of the load test against a server with known delays, each in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from loadtest.record import StreamRecord
from loadtest.report.files import STREAMS, read_figures

ROOT = Path(__file__).resolve().parents[2]


#: How a column of streams.csv is read, by the type of its field.
READ: dict[Any, Callable[[str], Any]] = {
    "str": str,
    "Outcome": str,
    "int": int,
    "float": float,
    "bool": lambda text: text == "True",
    "float | None": lambda text: float(text) if text else None,
    "Mapping[str, float]": lambda text: {k: float(ms) for k, ms in (pair.split("=") for pair in text.split())},
}


def read_streams(folder: Path) -> list[StreamRecord]:
    """The single streams of a run, without their curves."""
    kept = [field for field in fields(StreamRecord) if field.name not in ("gaps_ms", "lead")]
    with (folder / STREAMS).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [StreamRecord(**{field.name: READ[field.type](row[field.name]) for field in kept}) for row in rows]


class Known:
    """A known server in a process of its own, and the lines it has written."""

    def __init__(self, script: str, folder: Path) -> None:
        self._log = folder / "server.jsonl"
        path = os.pathsep.join(map(str, (ROOT, ROOT / "client", ROOT / "tests" / "helpers")))
        self.process = subprocess.Popen(
            [sys.executable, "tests/helpers/loadtest_known_server.py", script, str(self._log)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = f"localhost:{int(self.process.stdout.readline())}"

    def __enter__(self) -> Known:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)

    def sent_nothing(self) -> bool:
        return not self._log.exists()

    def sent(self) -> dict[int, dict[str, Any]]:
        """What it did, by seed."""
        return {line["seed"]: line for line in map(json.loads, self._log.read_text().splitlines())}


def load(url: str, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m loadtest`, started."""
    command = [sys.executable, "-m", "loadtest", "--url", url, "--out", str(out), "--barge-in", "0", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(run: subprocess.Popen[str], out: Path) -> tuple[int, str, dict[str, Any], list[StreamRecord]]:
    """Exit code, what it printed, the report's figures and its single streams."""
    printed, _ = run.communicate(timeout=240)
    return run.returncode, printed, read_figures(out), read_streams(out)


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s:
        try:
            if condition():
                return
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come to that within 120 s")
