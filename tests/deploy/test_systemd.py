"""deploy/systemd: read by systemd itself where it is installed, stopped so that streams end, closed otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from server.__main__ import parse_options
from server.checks import check_numbers, check_remote
from server.guarded import END_S
from systemd_units import (
    SYSTEMD,
    analyze,
    command,
    environment,
    installed_copy,
    needs_systemd,
    sections,
    service,
)

UNIT = SYSTEMD / "vita-audio.service"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with programs and folders of this machine, and the drop-in beside it."""
    return installed_copy(UNIT, tmp_path)


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
    options, _ = parse_options(command(UNIT)[3:])
    assert service(UNIT)["KillMode"] == "mixed"
    assert service(UNIT).get("KillSignal", "SIGTERM") == "SIGTERM"
    assert int(service(UNIT)["TimeoutStopSec"]) > options.exit_timeout_s + END_S + 10


def test_no_option_of_the_operator_outlives_the_stop() -> None:
    *given, last = command(UNIT)
    assert last.startswith("--exit-timeout=")
    later, _ = parse_options([*given[3:], "--exit-timeout=9000", last])
    assert f"--exit-timeout={later.exit_timeout_s}" == last
    assert "--exit-timeout" not in environment(UNIT)["VITA_OPTIONS"]


def test_the_server_understands_its_command() -> None:
    assert command(UNIT)[1:3] == ["-m", "server"]
    options, log_file = parse_options(command(UNIT)[3:])
    check_numbers(options)
    check_remote(options)
    assert str(log_file) == f"/var/log/{service(UNIT)['LogsDirectory']}/triton.log"


def test_it_comes_back_but_not_for_ever() -> None:
    unit = sections(UNIT.read_text())["Unit"]
    assert service(UNIT)["Restart"] == "on-failure"
    burst, interval_s = int(unit["StartLimitBurst"][0]), int(unit["StartLimitIntervalSec"][0])
    assert burst * int(service(UNIT)["RestartSec"]) < interval_s  # else the limit is never reached
    with pytest.raises(SystemExit) as wrong:
        parse_options(["--slots=many"])
    assert str(wrong.value.code) == service(UNIT)["RestartPreventExitStatus"]


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
    assert service(UNIT)[key] == value


def test_what_triton_needs_is_not_taken_away() -> None:
    """Shared memory, code that libraries generate, and threads across cores."""
    assert not {"PrivateIPC", "PrivateNetwork", "MemoryDenyWriteExecute", "ProcSubset"} & service(UNIT).keys()
    assert "/dev/shm" not in service(UNIT).get("InaccessiblePaths", "")
    gpu = sections((SYSTEMD / "gpu.conf").read_text())["Service"]
    assert gpu["PrivateDevices"] == ["no"]
    assert all(device.startswith("char-nvidia") for device in gpu["DeviceAllow"])
    assert gpu.keys() <= {*service(UNIT).keys(), "DevicePolicy", "DeviceAllow", "LimitMEMLOCK"}
