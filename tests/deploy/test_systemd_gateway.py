"""deploy/systemd/vita-gateway.service: systemd reads it where installed; closed like the server; it drains."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import app
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

UNIT, SERVER = SYSTEMD / "vita-gateway.service", SYSTEMD / "vita-audio.service"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with programs and folders of this machine."""
    return installed_copy(UNIT, tmp_path)


@needs_systemd
def test_systemd_reads_it_without_a_word_and_calls_it_well_closed(installed: Path) -> None:
    made = analyze("verify", "--man=no", str(installed))
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    made = analyze("security", "--offline=true", "--threshold=20", str(installed))  # tenths: at most 2.0 of 10
    assert made.returncode == 0, made.stdout[-300:] + made.stderr


def test_the_gateway_understands_its_command() -> None:
    """All but its keys, which systemd puts there; what counts last is the unit's own drain."""
    given = command(UNIT)
    assert given[1:3] == ["-m", "gateway"]
    made = CliRunner().invoke(app, given[3:])
    assert (made.exit_code, made.stderr.count("\n")) == (2, 1)
    assert made.stderr.startswith("error: keys: '%d/keys' is not valid: it cannot be read")
    assert service(UNIT)["LoadCredential"].startswith("keys:")
    assert str(made.exit_code) == service(UNIT)["RestartPreventExitStatus"]


def test_its_drain_ends_before_it_is_killed() -> None:
    drain = [each for each in command(UNIT) if each.startswith("--drain-timeout-s=")]
    assert command(UNIT)[-1:] == drain
    assert int(service(UNIT)["TimeoutStopSec"]) > int(drain[0].partition("=")[2]) + 10
    assert not {"--keys", "--drain-timeout-s"} & set(
        environment(UNIT)["VITA_GATEWAY_OPTIONS"].replace("=", " ").split()
    )


def test_it_is_closed_as_the_server_is_and_comes_back_but_not_for_ever() -> None:
    own = {"ExecStart", "EnvironmentFile", "KillMode", "OOMPolicy", "LogsDirectory"}
    server = {key: value for key, value in service(SERVER).items() if key not in own}
    assert server.items() <= service(UNIT).items()
    unit = sections(UNIT.read_text())["Unit"]
    burst, interval_s = int(unit["StartLimitBurst"][0]), int(unit["StartLimitIntervalSec"][0])
    assert burst * int(service(UNIT)["RestartSec"]) < interval_s
