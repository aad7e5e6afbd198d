"""Errors: OpenAI's form, the status of each code, and that nothing of the inside shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client_protocol_double import ProtocolDouble
from gateway.errors import ANSWERS, FAULT, GatewayError, body_of, response_of
from gateway.settings import Settings
from gateway_routes import router
from gateway_runs import served
from vita_audio.contract.errors import InvalidRequest, ServerFull, VitaError
from vita_client.errors import UNAVAILABLE, ServerUnavailable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def url(double: ProtocolDouble) -> Iterator[str]:
    with served(Settings(servers=(double.url,)), router) as url:
        yield url


def speak(url: str, text: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/speak", json={"text": text})


def test_every_code_that_says_later_has_a_retry_after_and_a_status_that_sdks_try_again() -> None:
    later = {code for code, answer in ANSWERS.items() if answer.retry_after_s is not None}
    assert later >= UNAVAILABLE | {"rate_limit_exceeded", "insufficient_quota"}
    assert all(ANSWERS[code].status in (429, 502, 503) for code in later)


def test_an_unknown_code_is_a_fault() -> None:
    assert response_of(VitaError("x", code="new_code")).status_code == FAULT.status == 500


def test_a_wrong_field_is_named_as_it_was_sent() -> None:
    error = InvalidRequest("TOP_P", 2.0, "it is at most 1")
    assert body_of(error) == {
        "error": {
            "message": "TOP_P: 2.0 is not valid: it is at most 1",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_request",
        }
    }
    assert response_of(error).status_code == 400


def test_a_limit_says_when_to_come_back() -> None:
    assert response_of(ServerFull(8, 32)).headers["retry-after"] == "1"
    error = GatewayError("x", code="insufficient_quota", retry_after_s=7)
    assert response_of(error).headers["retry-after"] == "7"
    assert response_of(GatewayError("x", code="invalid_api_key")).headers["www-authenticate"] == "Bearer"


def test_addresses_behind_the_gateway_go_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    error = ServerUnavailable("no answer from 10.1.2.3:8001: Connection refused")
    assert "10.1.2.3" not in str(body_of(error))
    assert "10.1.2.3" in caplog.records[0].__dict__["reason"]


@pytest.mark.parametrize(
    ("script", "status", "code", "retry"),
    [
        ("message-only [vita:server_full] server is full (8 running, 32 waiting)", 503, "server_full", "1"),
        ("message-only [vita:shutting_down] server is shutting down", 503, "shutting_down", "5"),
        ("message-only [vita:invalid_request field=TEXT] TEXT: '' is not valid: x", 400, "invalid_request", None),
        ("message-only [vita:engine_error] the flow engine broke", 500, "engine_error", None),
        ("short", 502, "stream_broken", "1"),
        ("fail", 500, "engine_error", None),
        ("bad-tensor pcm", 502, "bad_response", None),
        ("abort UNAVAILABLE gone", 503, "unavailable", "1"),
        ("abort UNAUTHENTICATED no", 502, "access_denied", None),
    ],
)
def test_errors_of_the_server(url: str, script: str, status: int, code: str, retry: str | None) -> None:
    answer = speak(url, script)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], answer.headers.get("retry-after")) == (status, code, retry)
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert "localhost" not in error["message"]


def test_a_request_that_takes_too_long(double: ProtocolDouble) -> None:
    with served(Settings(servers=(double.url,), request_timeout_s=0.3), router) as url:
        answer = speak(url, "hang")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"{}", "text"),
        (b'{"text": 1}', "text"),
        (b'{"text": "%b"}' % (b"a" * 1001), "text"),
        (b"\xff\xfe", "body"),
    ],
)
def test_a_wrong_body(url: str, content: bytes, param: str) -> None:
    answer = httpx.post(f"{url}/v1/speak", content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_request", param)


def test_a_wrong_method(url: str) -> None:
    answer = httpx.get(f"{url}/v1/speak")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_a_bug_is_a_500_that_repeats_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = httpx.get(f"{url}/v1/fault", params={"secret": "my words"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "my words" not in answer.text
    assert len(answer.headers["x-request-id"]) == 32
    faults = [record for record in caplog.records if record.message == "fault"]
    assert faults[0].__dict__["id"] == answer.headers["x-request-id"]


def test_the_table_in_the_manual_is_this_one() -> None:
    page = (ROOT / "docs" / "gateway.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \| ((?:`\w+`(?:, )?)+) \|([^|]*)\|", page, re.MULTILINE)
    told = {
        code: (int(status), retry.strip()) for status, codes, retry in rows for code in re.findall(r"`(\w+)`", codes)
    }
    real = {code: (answer.status, f"{answer.retry_after_s} s") for code, answer in ANSWERS.items()}
    real |= {code: (answer.status, "") for code, answer in ANSWERS.items() if answer.retry_after_s is None}
    assert told == real | {"insufficient_quota": (429, "to the next hour or day")}
