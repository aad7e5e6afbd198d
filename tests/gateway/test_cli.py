"""The command `vita-gateway`: its options, its errors, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway import cli
from gateway.keys import KeyFile
from gateway.settings import Settings


class Started:
    """In place of the server: what it would have been started with."""

    settings: Settings

    def __init__(self, app: Any, settings: Settings) -> None:
        Started.settings = settings

    def run(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "Server", Started)
    monkeypatch.setattr(cli.logs, "configure", lambda: None)


def vita_gateway(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_without_options_the_settings_are_the_defaults() -> None:
    assert vita_gateway().exit_code == 0
    assert Started.settings == Settings()


def test_every_setting_has_an_option(tmp_path: Path) -> None:
    for name in ("a.pem", "keys"):
        (tmp_path / name).write_text("")
    pem, keys = str(tmp_path / "a.pem"), str(tmp_path / "keys")
    made = vita_gateway(
        *("--server", "a:1", "--server", "b:1", "--server-name", "c:1", "--host", "0.0.0.0", "--port", "1"),
        *("--wyoming-port", "2", "--wyoming-host", "localhost", "--tls-certificate", pem, "--tls-key", pem),
        *("--keys", keys, "--open-access", "--origin", "https://a.example", "--host-name", "voice"),
        *("--max-requests", "3", "--max-body-bytes", "4", "--body-timeout-s", "5", "--request-timeout-s", "6"),
        *("--write-timeout-s", "7", "--drain-timeout-s", "8"),
    )
    assert made.exit_code == 0, made.output
    default, given = Settings(), Started.settings
    same = {name for name in Settings.__dataclass_fields__ if getattr(given, name) == getattr(default, name)}
    assert same == {"server_tls"}
    assert (given.servers, given.origins, given.host_names) == (("a:1", "b:1"), ("https://a.example",), ("voice",))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "error: host: '0.0.0.0' is not valid: other machines could use it"),
        (["--server", "nowhere"], "error: url: 'nowhere' is not valid"),
        (["--keys", "none"], "error: keys: 'none' is not valid: it cannot be read"),
        (["--request-timeout-s", "100000"], "error: request_timeout_s: 100000.0 is not valid"),
        (["--origin", "*"], "error: origin: '*' is not valid"),
        (["--server-ca", "none"], "error: TLS: 'none' is not valid: it cannot be read"),
        (["--server-key", "none"], "error: TLS: 'key' is not valid: a client certificate and its key belong together"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], says: str) -> None:
    made = vita_gateway(*arguments)
    assert made.exit_code == 2
    assert made.stderr.startswith(says)
    assert made.stderr.count("\n") == 1


def test_a_port_that_is_none_is_refused() -> None:
    made = vita_gateway("--wyoming-port", "99999")
    assert (made.exit_code, "--wyoming-port" in made.stderr) == (2, True)


def test_a_key_is_printed_once_and_kept_as_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    made = vita_gateway("key", "page", "--keys", str(file), "--streams", "2", "--minutes-per-day", "90")
    key = made.stdout.strip()
    assert made.exit_code == 0
    assert key not in file.read_text()
    found = KeyFile(file).find(key)
    assert (found.name, found.limits.streams, found.limits.minutes_per_day) == ("page", 2, 90)
    again = vita_gateway("key", "page", "--keys", str(file))
    assert (again.exit_code, again.stdout) == (2, "")
    assert "remove its line first" in again.stderr
