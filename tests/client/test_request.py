"""What the client checks before it sends: every bad field is named, nothing leaves the machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_client import InvalidRequest, build_request
from vita_client.wire import infer_request

SPEECH = np.zeros(1600, np.float32)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "TEXT"),
        ({"text": ""}, "TEXT"),
        ({"text": " \n\t "}, "TEXT"),
        ({"text": b"\xff"}, "TEXT"),
        ({"text": 5}, "TEXT"),
        ({"text": "half \udcff"}, "TEXT"),
        ({"audio": SPEECH, "task": "tts"}, "TEXT"),
        ({"audio": SPEECH, "task": "text"}, "TEXT"),
        ({"text": "hi", "task": "asr"}, "AUDIO"),
        ({"text": "hi", "audio": SPEECH, "task": "asr"}, "TEXT"),
        ({"text": "hi", "audio": SPEECH, "task": "tts"}, "AUDIO"),
        ({"text": "hi", "audio": SPEECH, "task": "text"}, "AUDIO"),
        ({"text": "hi", "sample_rate": 16_000}, "SAMPLE_RATE"),
        ({"text": "hi", "task": "sing"}, "TASK"),
        ({"text": "hi", "task": 1}, "TASK"),
        ({"text": "hi", "mode": "fast"}, "MODE"),
        ({"text": "hi", "mode": "1,4,2"}, "MODE"),
        ({"text": "hi", "mode": "0,4"}, "MODE"),
        ({"text": "hi", "max_tokens": 0}, "MAX_TOKENS"),
        ({"text": "hi", "max_tokens": 2**31}, "MAX_TOKENS"),
        ({"text": "hi", "max_tokens": 1.5}, "MAX_TOKENS"),
        ({"text": "hi", "max_tokens": True}, "MAX_TOKENS"),
        ({"text": "hi", "temperature": -0.1}, "TEMPERATURE"),
        ({"text": "hi", "temperature": 10.1}, "TEMPERATURE"),
        ({"text": "hi", "temperature": float("nan")}, "TEMPERATURE"),
        ({"text": "hi", "temperature": "1"}, "TEMPERATURE"),
        ({"text": "hi", "top_k": -1}, "TOP_K"),
        ({"text": "hi", "top_k": 1_000_001}, "TOP_K"),
        ({"text": "hi", "top_p": 0.0}, "TOP_P"),
        ({"text": "hi", "top_p": 1.01}, "TOP_P"),
        ({"text": "hi", "repetition_penalty": 0}, "REPETITION_PENALTY"),
        ({"text": "hi", "repetition_penalty": float("inf")}, "REPETITION_PENALTY"),
        ({"text": "hi", "seed": -1}, "SEED"),
        ({"text": "hi", "seed": 2**64}, "SEED"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_request(**fields)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        build_request("hi", temprature=1.0)  # type: ignore[call-arg]


def test_edges_are_allowed_and_numpy_numbers_too() -> None:
    request = build_request(
        "hi", temperature=0, top_k=np.int64(0), top_p=np.float32(1.0), max_tokens=1, seed=np.uint64(2**64 - 1)
    )
    assert request.values == {
        "TEXT": "hi", "TASK": "chat", "TEMPERATURE": 0.0, "TOP_K": 0, "TOP_P": 1.0, "MAX_TOKENS": 1, "SEED": 2**64 - 1
    }  # fmt: skip


def test_mode_travels_in_its_canonical_form() -> None:
    assert build_request("hi", mode=" TURBO ").values["MODE"] == "turbo"
    assert build_request("hi", mode="1, 4, 2, 5").values["MODE"] == "1,4,2,5"


@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
    seed=st.integers(0, 2**64 - 1),
    top_k=st.integers(0, 1_000_000),
    temperature=st.floats(0, 10, width=32),
)
def test_what_is_sent_is_what_was_asked(text: str, seed: int, top_k: int, temperature: float) -> None:
    message = infer_request(build_request(text, seed=seed, top_k=top_k, temperature=temperature), "id")
    sent = dict(zip((tensor.name for tensor in message.inputs), message.raw_input_contents, strict=True))
    assert sent["TEXT"][4:].decode() == text
    assert np.frombuffer(sent["SEED"], "<u8").tolist() == [seed]
    assert np.frombuffer(sent["TOP_K"], "<i4").tolist() == [top_k]
    assert np.frombuffer(sent["TEMPERATURE"], "<f4").tolist() == [temperature]
    assert "AUDIO" not in sent
