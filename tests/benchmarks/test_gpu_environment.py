"""The lines about a GPU machine: a driver that does not answer costs its own line only."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_environment


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
    monkeypatch.setattr(gpu_environment, "_TIMEOUT_S", 0.5)
    *others, last = gpu_environment.lines()
    assert last.startswith("name,driver_version")
    assert said in last
    assert any(line.startswith("torch ") for line in others)
