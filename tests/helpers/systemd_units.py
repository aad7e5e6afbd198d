"""Units of deploy/systemd: their settings, their commands, and what systemd says of them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).resolve().parents[2] / "deploy" / "systemd"

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")

Sections = dict[str, dict[str, list[str]]]


def sections(text: str) -> Sections:
    """Section -> key -> values, in order. Fails on a line that is neither section, setting, comment nor blank."""
    made: Sections = {}
    section = ""
    for line in text.splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = found[1]
            assert section not in made
            made[section] = {}
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals
            assert re.fullmatch("[A-Z][A-Za-z]+", key), line
            made[section].setdefault(key, []).append(value)
    return made


def service(unit: Path) -> dict[str, str]:
    """The settings of ``[Service]`` that are given once."""
    return {key: values[0] for key, values in sections(unit.read_text())["Service"].items() if len(values) == 1}


def environment(unit: Path) -> dict[str, str]:
    """The variables of the environment file beside it."""
    lines = unit.with_suffix(".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def command(unit: Path) -> list[str]:
    """ExecStart as systemd splits it."""
    text = re.sub(r"\$(\w+)", lambda found: environment(unit)[found[1]], service(unit)["ExecStart"])
    return shlex.split(text)


def installed_copy(unit: Path, folder: Path) -> Path:
    """A unit in `folder`, with programs and folders of this machine."""
    text = unit.read_text().replace("/opt/vita-audio/.venv/bin/python", sys.executable)
    copy = folder / unit.name
    copy.write_text(text.replace("WorkingDirectory=/opt/vita-audio", f"WorkingDirectory={folder}"))
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=120)
