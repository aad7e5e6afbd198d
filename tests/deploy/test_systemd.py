"""deploy/systemd: read by systemd itself where it is installed, stopped so that streams end, closed otherwise."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import parse_options
from server.checks import check_numbers, check_remote
from server.guarded import END_S

SYSTEMD = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNIT = SYSTEMD / "vita-audio.service"

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


def service() -> dict[str, str]:
    """The settings of ``[Service]`` that are given once."""
    return {key: values[0] for key, values in sections(UNIT.read_text())["Service"].items() if len(values) == 1}


def environment() -> dict[str, str]:
    """The variables of the environment file."""
    lines = (SYSTEMD / "vita-audio.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def command() -> list[str]:
    """ExecStart as systemd splits it."""
    text = re.sub(r"\$(\w+)", lambda found: environment()[found[1]], service()["ExecStart"])
    return shlex.split(text)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with programs and folders of this machine, and the drop-in beside it."""
    text = UNIT.read_text().replace("/opt/vita-audio/.venv/bin/python", sys.executable)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("WorkingDirectory=/opt/vita-audio", f"WorkingDirectory={tmp_path}"))
    return unit


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=120)


@needs_systemd
@pytest.mark.parametrize("drop_in", [None, "gpu.conf"])
def test_systemd_reads_it_without_a_word(installed: Path, drop_in: str | None) -> None:
    if drop_in:
        folder = installed.with_name(f"{installed.name}.d")
        folder.mkdir()
        shutil.copy(SYSTEMD / drop_in, folder)
    made = analyze("verify", "--man=no", str(installed))
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")


@needs_systemd
def test_systemd_finds_a_wrong_key(installed: Path) -> None:
    installed.write_text(installed.read_text().replace("KillMode=mixed", "KillMood=mixed"))
    assert "KillMood" in analyze("verify", "--man=no", str(installed)).stderr


@needs_systemd
def test_systemd_calls_it_well_closed(installed: Path) -> None:
    made = analyze("security", "--offline=true", "--threshold=20", str(installed))  # tenths: at most 2.0 of 10
    assert made.returncode == 0, made.stdout[-300:] + made.stderr


def test_sigterm_reaches_the_launcher_alone_and_its_drain_ends_first() -> None:
    options, _ = parse_options(command()[3:])
    assert service()["KillMode"] == "mixed"
    assert service().get("KillSignal", "SIGTERM") == "SIGTERM"
    assert int(service()["TimeoutStopSec"]) > options.exit_timeout_s + END_S + 10


def test_no_option_of_the_operator_outlives_the_stop() -> None:
    *given, last = command()
    assert last.startswith("--exit-timeout=")
    later, _ = parse_options([*given[3:], "--exit-timeout=9000", last])
    assert f"--exit-timeout={later.exit_timeout_s}" == last
    assert "--exit-timeout" not in environment()["VITA_OPTIONS"]


def test_the_server_understands_its_command() -> None:
    assert command()[1:3] == ["-m", "server"]
    options, log_file = parse_options(command()[3:])
    check_numbers(options)
    check_remote(options)
    assert str(log_file) == f"/var/log/{service()['LogsDirectory']}/triton.log"


def test_it_comes_back_but_not_for_ever() -> None:
    unit = sections(UNIT.read_text())["Unit"]
    assert service()["Restart"] == "on-failure"
    burst, interval_s = int(unit["StartLimitBurst"][0]), int(unit["StartLimitIntervalSec"][0])
    assert burst * int(service()["RestartSec"]) < interval_s  # else the limit is never reached
    with pytest.raises(SystemExit) as wrong:
        parse_options(["--slots=many"])
    assert str(wrong.value.code) == service()["RestartPreventExitStatus"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "exec"),
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("PrivateTmp", "yes"),
        ("CapabilityBoundingSet", ""),
        ("IPAddressDeny", "any"),
        ("SystemCallFilter", "@system-service"),
    ],
)
def test_it_is_closed(key: str, value: str) -> None:
    assert service()[key] == value


def test_what_triton_needs_is_not_taken_away() -> None:
    """Shared memory, code that libraries generate, and threads across cores."""
    assert not {"PrivateIPC", "PrivateNetwork", "MemoryDenyWriteExecute", "ProcSubset"} & service().keys()
    assert "/dev/shm" not in service().get("InaccessiblePaths", "")
    gpu = sections((SYSTEMD / "gpu.conf").read_text())["Service"]
    assert gpu["PrivateDevices"] == ["no"]
    assert all(device.startswith("char-nvidia") for device in gpu["DeviceAllow"])
    assert gpu.keys() <= {*service().keys(), "DevicePolicy", "DeviceAllow", "LimitMEMLOCK"}
