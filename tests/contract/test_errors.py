"""Errors have stable codes and travel as one line that programs can read back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.contract.errors import (
    BadMessage,
    CheckpointError,
    EngineError,
    InvalidRequest,
    ServerFull,
    ServerStopping,
    VitaError,
    WireError,
    error_code,
    from_wire,
    to_wire,
)

_UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
_CODES = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
_PREFIXES = ["", "in ensemble 'vita_audio', ", "[request id: 7] ", "[request id: 7] in ensemble 'vita_audio', "]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VitaError("x"), "internal_error"),
        (InvalidRequest("TOP_P", 2.0, "at most 1"), "invalid_request"),
        (ServerFull(4, 8), "server_full"),
        (ServerStopping(), "shutting_down"),
        (BadMessage("x"), "bad_message"),
        (CheckpointError("x"), "checkpoint_error"),
        (EngineError("x"), "engine_error"),
        (ValueError("x"), "internal_error"),
    ],
)
def test_every_class_has_a_code_that_does_not_change(error: Exception, code: str) -> None:
    assert error_code(error) == code
    assert to_wire(error).startswith(f"[vita:{code}")


def test_the_wire_form_is_documented_and_stable() -> None:
    assert to_wire(InvalidRequest("TOP_P", 2.0, "at most 1", "lower it")) == (
        "[vita:invalid_request field=TOP_P] TOP_P: 2.0 is not valid: at most 1; lower it"
    )
    assert to_wire(ServerFull(4, 8)) == "[vita:server_full] server is full (4 running, 8 waiting)"
    assert to_wire(KeyError("x")) == "[vita:internal_error] internal error: KeyError: 'x'"


@pytest.mark.parametrize("prefix", _PREFIXES)
@settings(deadline=None)
@given(message=_UNICODE, code=_CODES, field=_UNICODE)
def test_any_text_comes_back(prefix: str, message: str, code: str, field: str) -> None:
    line = to_wire(VitaError(message, code=code, field=field))
    assert "\n" not in line
    assert from_wire(prefix + line) == WireError(code, field, " ".join(message.split()))


@settings(deadline=None)
@given(text=st.text())
def test_what_is_not_unicode_is_escaped(text: str) -> None:
    to_wire(VitaError(text, field=text)).encode("utf-8")


@settings(deadline=None)
@given(text=_UNICODE)
def test_foreign_text_is_not_ours(text: str) -> None:
    if not text.startswith("[vita:"):
        assert from_wire(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[request id: 7] inference input 'TEXT' data-type is 'INT32'",
        "[vita:] x",
        "[vita:Upper] x",
        "[vita:server_full",
        "[vita:server_full field] x",
        "so it said: [vita:server_full] server is full",
    ],
)
def test_what_only_looks_like_ours_is_not_read(text: str) -> None:
    assert from_wire(text) is None


def test_running_and_waiting_of_a_full_server_are_not_mixed_up() -> None:
    error = ServerFull(running=3, waiting=5)
    assert (error.running, error.waiting, str(error)) == (3, 5, "server is full (3 running, 5 waiting)")
