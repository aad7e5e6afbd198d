"""What a number was measured on: one line, a revision; a driver that does not answer costs its own line only."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from vita_audio import machine


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("#!/bin/sh\nexec sleep 30\n", "timed out after 0.5 seconds"),
        ("not a program", "Exec format error"),
        ("#!/bin/sh\nexit 9\n", "nothing, exit 9"),
        ("#!/bin/sh\necho driver is gone >&2; exit 9\n", "driver is gone"),
        ("#!/bin/sh\necho H100\n", ": H100"),
    ],
)
def test_nvidia_smi(script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(script)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "_TIMEOUT_S", 0.5)
    *others, last = machine.lines()
    assert last.startswith("name,driver_version")
    assert said in last
    assert any(line.startswith("torch ") for line in others)


def test_the_machine_in_one_line() -> None:
    line = machine.describe_machine()
    assert re.fullmatch(r".+, \d+ cores, \d+ GiB, Python 3\.\d+\.\S+", line)
    assert machine.describe_device(torch.device("cpu")).startswith(f"{line}, PyTorch ")


def test_a_revision(tmp_path: Path) -> None:
    assert machine.revision(tmp_path / "nothing") == "unknown"

    def git(*words: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/results.md"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = machine.revision(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "docs/results.md").write_text("2")  # measuring writes it
    assert machine.revision(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    assert machine.revision(tmp_path) == f"{clean}-dirty"
