"""Settings: what other machines reach has keys, and wrong ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.settings import Settings
from vita_audio.contract.errors import InvalidRequest


def test_the_default_is_this_machine_alone() -> None:
    assert Settings().host == "127.0.0.1"
    assert Settings().origins == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gateway.example"])
def test_other_machines_need_keys_or_a_switch(host: str) -> None:
    with pytest.raises(InvalidRequest, match="other machines could use it without a key; give --keys FILE"):
        Settings(host=host)
    Settings(host=host, keys=Path("keys"))
    Settings(host=host, open_access=True)


def test_wyoming_has_no_keys() -> None:
    with pytest.raises(InvalidRequest, match="wyoming_host"):
        Settings(wyoming_host="0.0.0.0", wyoming_port=10300, keys=Path("keys"))
    Settings(wyoming_host="0.0.0.0", wyoming_port=10300, open_access=True)
    Settings(wyoming_host="0.0.0.0")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"servers": ()}, "one address or several"),
        ({"servers": ("a:1", "a:1")}, "each once"),
        ({"servers": ("http://a:1",)}, "leave out http://"),
        ({"tls_key": Path("a")}, "belong together"),
        ({"tls_key": Path("none"), "tls_certificate": Path("none")}, "there is no such file"),
        ({"max_requests": 0}, "max_requests: 0 is not valid"),
        ({"write_timeout_s": float("nan")}, "write_timeout_s: nan is not valid"),
        ({"drain_timeout_s": -1.0}, "it is 0 or more"),
        ({"request_timeout_s": 100_000.0}, "request_timeout_s: 100000.0 is not valid: .* at most 86400 seconds"),
        ({"write_timeout_s": float("inf")}, "write_timeout_s: inf is not valid"),
        ({"body_timeout_s": 86_401.0}, "body_timeout_s"),
        ({"origins": ("*",)}, r"origin: '\*' is not valid: it is the origin of pages"),
        ({"origins": ("app.example.com",)}, "origin"),
        ({"origins": ("https://a.example/talk",)}, "without a path"),
        ({"origins": ("https://a.example,https://b.example",)}, "give --origin once for each"),
        ({"host_names": ("voice:8080",)}, "host_name: 'voice:8080' is not valid: it is one name"),
        ({"host_names": ("https://voice",)}, "leave out scheme and port"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("https://App.Example.com/", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("chrome-extension://abcd", "chrome-extension://abcd"),
        ("null", "null"),
    ],
)
def test_origins_are_as_browsers_write_them(given: str, kept: str) -> None:
    assert Settings(origins=(given,)).origins == (kept,)


def test_host_names_are_compared_in_lower_case() -> None:
    assert Settings(host_names=("MyBox.local",)).host_names == ("mybox.local",)
