"""Every bad input gets one InvalidRequest that names the field; good ones get the defaults of their task."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import INPUTS
from vita_audio.contract.limits import Limits
from vita_audio.contract.messages import GenerationSettings, Start, decode, encode
from vita_audio.contract.request import SpeechRequest, check_prompt, parse_request
from vita_audio.contract.speech import check_audio, check_duration

LIMITS = Limits(
    context_tokens=2048, max_tokens=1024, default_max_tokens=512, mctp_modules=10, default_pattern=(1, 10, 4, 10)
)
SPEECH = np.zeros(16_000, np.float32)


def _with(value: float) -> np.ndarray:
    audio = SPEECH.copy()
    audio[17] = value
    return audio


def parse(**inputs: Any) -> SpeechRequest:
    return parse_request(inputs, LIMITS)


def test_defaults_of_chat() -> None:
    request = parse(TEXT="Hello")
    assert request.settings == GenerationSettings(
        task="chat",
        mode="boost",
        pattern=(1, 10, 4, 10),
        max_tokens=512,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.05,
        seed=request.settings.seed,
    )
    assert (request.text, request.audio, request.sample_rate_hz) == ("Hello", None, 16_000)


def test_defaults_of_the_other_tasks() -> None:
    tts = parse(TEXT="Hello", TASK="tts").settings
    assert (tts.temperature, tts.top_k, tts.mode) == (1.0, 50, "boost")
    asr = parse(AUDIO=SPEECH, TASK="asr").settings
    assert (asr.temperature, asr.top_k, asr.mode) == (0.0, 0, "boost")
    assert parse(TEXT="Hello", TASK="text").settings.mode == "vanilla"


def test_everything_as_triton_delivers_it() -> None:
    request = parse(
        TEXT=np.array(["Grüße".encode()], dtype=np.object_),
        AUDIO=SPEECH,
        SAMPLE_RATE=np.array([8000], np.int32),
        TASK=np.array([b"chat"], dtype=np.object_),
        MODE=np.array([b"2,3"], dtype=np.object_),
        MAX_TOKENS=np.array([7], np.int32),
        TEMPERATURE=np.array([0.7], np.float32),
        TOP_K=np.array([20], np.int32),
        TOP_P=np.array([0.8], np.float32),
        REPETITION_PENALTY=np.array([1.05], np.float32),
        SEED=np.array([2**64 - 1], np.uint64),
    )
    assert request.text == "Grüße"
    assert request.audio is SPEECH
    assert request.sample_rate_hz == 8000
    assert request.settings == GenerationSettings("chat", "2,3", (2, 3), 7, 0.7, 20, 0.8, 1.05, 2**64 - 1)


def test_none_is_not_sent() -> None:
    assert parse(**{field.name: None for field in INPUTS if field.name != "TEXT"}, TEXT="a").text == "a"


def test_drawn_seeds_differ_and_are_reported() -> None:
    seeds = {parse(TEXT="a").settings.seed for _ in range(8)}
    assert len(seeds) > 1
    assert parse(TEXT="a", SEED=5).settings.seed == 5


def test_silence_and_8_khz_are_fine() -> None:
    request = parse(AUDIO=np.zeros(8_000 * 120, np.float32), SAMPLE_RATE=8_000)
    assert request.audio is not None
    assert request.text is None


def test_what_lies_on_a_limit_is_taken() -> None:
    longest, shortest = np.zeros(8_000 * 120, np.float32), np.zeros(160, np.float32)
    for audio in (longest, shortest):
        request = parse(AUDIO=audio, SAMPLE_RATE=8_000)
        assert (request.audio is audio, request.sample_rate_hz) == (True, 8_000)
    assert parse(AUDIO=_with(4.0)).audio is not None
    assert parse(AUDIO=_with(-4.0)).audio is not None
    assert parse(TEXT="a" * (16 * 2048)).text is not None
    for audio, rate_hz in ((np.zeros(8_000 * 120 + 1, np.float32), 8_000), (np.zeros(159, np.float32), 8_000)):
        with pytest.raises(InvalidRequest, match=r"^AUDIO"):
            parse(AUDIO=audio, SAMPLE_RATE=rate_hz)
    with pytest.raises(InvalidRequest, match=r"^TEXT"):
        parse(TEXT="a" * (16 * 2048 + 1))


def test_another_longest_recording_may_be_asked_for() -> None:
    check_duration(16_000, 16_000, longest_s=1.0)
    check_audio(SPEECH, 16_000, longest_s=1.0)
    for check in (
        lambda: check_duration(16_001, 16_000, 1.0),
        lambda: check_audio(np.append(SPEECH, SPEECH), 16_000, 1.0),
    ):
        with pytest.raises(InvalidRequest, match="at most 1 s are taken"):
            check()


BAD = [
    ({}, "TEXT", "neither TEXT nor AUDIO"),
    ({"TEXT": ""}, "TEXT", "empty"),
    ({"TEXT": " \n\t\u3000"}, "TEXT", "empty or only white space"),
    ({"TEXT": "", "AUDIO": SPEECH}, "TEXT", "leave TEXT out"),
    ({"TEXT": "a" * 40_000}, "TEXT", "40000 characters are more than 32768"),
    ({"TEXT": "a\ud800"}, "TEXT", "lone surrogate"),
    ({"TEXT": b"\xff\xfe"}, "TEXT", "byte 0 is not UTF-8"),
    ({"TEXT": 5}, "TEXT", "must be a string"),
    ({"TEXT": np.array(["a", "b"], dtype=np.object_)}, "TEXT", r"shape \[1\]"),
    ({"TEXT": np.array([], dtype=np.object_)}, "TEXT", r"shape \[1\]"),
    ({"TEXT": np.array([1.0], np.float32)}, "TEXT", "must be STRING"),
    ({"AUDIO": np.zeros(0, np.float32)}, "AUDIO", "is empty"),
    ({"AUDIO": np.zeros(5, np.float32)}, "AUDIO", r"at least 0\.02 s"),
    ({"AUDIO": _with(np.nan)}, "AUDIO", "nan at sample 17"),
    ({"AUDIO": _with(np.inf)}, "AUDIO", "inf at sample 17"),
    ({"AUDIO": _with(-np.inf)}, "AUDIO", "inf at sample 17"),
    ({"AUDIO": _with(20_000.0)}, "AUDIO", r"lie in \[-1, 1\]"),
    ({"AUDIO": SPEECH.astype(np.float64)}, "AUDIO", "must be float32"),
    ({"AUDIO": SPEECH.astype(np.int16)}, "AUDIO", "must be float32"),
    ({"AUDIO": SPEECH.reshape(1, -1)}, "AUDIO", "must be mono"),
    ({"AUDIO": "noise"}, "AUDIO", "not a list of numbers"),
    ({"TEXT": "a", "HISTORY": [1.5]}, "HISTORY", "one row of whole numbers"),
    ({"TEXT": "a", "HISTORY": [[1], [2, 3]]}, "HISTORY", "not a list of ids"),
    ({"TEXT": "a", "HISTORY": np.zeros((2, 2), np.int32)}, "HISTORY", "one row of whole numbers"),
    ({"TEXT": "a", "HISTORY": "abc"}, "HISTORY", "one row of whole numbers"),
    ({"TEXT": "a", "HISTORY": [3, -1]}, "HISTORY", "-1 to 3"),
    ({"TEXT": "a", "HISTORY": [2**31]}, "HISTORY", "0 to 2147483647"),
    ({"TEXT": "a", "HISTORY": [10**30]}, "HISTORY", "one row of whole numbers"),
    ({"TEXT": "a", "HISTORY": np.zeros(65_537, np.int32)}, "HISTORY", "at most 65536"),
    ({"TEXT": "a", "HISTORY": [5], "SYSTEM": "Be kind."}, "SYSTEM", "HISTORY begins with its own"),
    ({"TEXT": "a", "SYSTEM": "  "}, "SYSTEM", "leave SYSTEM out"),
    ({"TEXT": "a", "HEARD": 3}, "HEARD", "no answer to cut"),
    ({"TEXT": "a", "HISTORY": [], "HEARD": 3}, "HEARD", "no answer to cut"),
    ({"TEXT": "a", "HISTORY": [5], "HEARD": -1}, "HEARD", "from 0"),
    ({"TEXT": "a", "HISTORY_OVERFLOW": "forget"}, "HISTORY_OVERFLOW", "one of error, drop"),
    ({"TEXT": "a", "READ_ONLY": 2}, "READ_ONLY", "from 0 to 1"),
    ({"TEXT": "a", "TASK": "tts", "HISTORY": [5]}, "HISTORY", "leave HISTORY out"),
    ({"TEXT": "a", "TASK": "tts", "READ_ONLY": 1}, "READ_ONLY", "leave READ_ONLY out"),
    ({"AUDIO": np.zeros(16_000 * 121, np.float32)}, "AUDIO", "at most 120 s"),
    ({"AUDIO": SPEECH, "SAMPLE_RATE": 0}, "SAMPLE_RATE", "from 8000 to 192000"),
    ({"AUDIO": SPEECH, "SAMPLE_RATE": -16_000}, "SAMPLE_RATE", "from 8000"),
    ({"AUDIO": SPEECH, "SAMPLE_RATE": 2_000_000_000}, "SAMPLE_RATE", "from 8000"),
    ({"AUDIO": SPEECH, "SAMPLE_RATE": 16_000.5}, "SAMPLE_RATE", "whole number"),
    ({"TEXT": "a", "SAMPLE_RATE": 1}, "SAMPLE_RATE", "from 8000"),
    ({"TEXT": "a", "TASK": "sing"}, "TASK", "one of chat, tts, asr, text"),
    ({"TEXT": "a", "TASK": ""}, "TASK", "one of chat"),
    ({"AUDIO": SPEECH, "TASK": "tts"}, "TEXT", "task tts needs TEXT"),
    ({"AUDIO": SPEECH, "TASK": "text"}, "TEXT", "task text needs TEXT"),
    ({"TEXT": "a", "TASK": "asr"}, "AUDIO", "task asr needs AUDIO"),
    ({"TEXT": "a", "AUDIO": SPEECH, "TASK": "asr"}, "TEXT", "AUDIO only"),
    ({"TEXT": "a", "AUDIO": SPEECH, "TASK": "tts"}, "AUDIO", "TEXT only"),
    ({"TEXT": "a", "AUDIO": SPEECH, "TASK": "text"}, "AUDIO", "TEXT only"),
    ({"TASK": "tts"}, "TEXT", "needs TEXT"),
    ({"TASK": "asr"}, "AUDIO", "needs AUDIO"),
    ({"TEXT": "a", "MODE": "fast"}, "MODE", "neither the name"),
    ({"TEXT": "a", "MODE": ""}, "MODE", "empty"),
    ({"TEXT": "a", "MODE": "1,10,4"}, "MODE", "pairs"),
    ({"TEXT": "a", "MODE": "0,0"}, "MODE", "at least 1 backbone"),
    ({"TEXT": "a", "MODE": "1,11"}, "MODE", "K = 10"),
    ({"TEXT": "a", "MAX_TOKENS": 0}, "MAX_TOKENS", "from 1 to 1024"),
    ({"TEXT": "a", "MAX_TOKENS": 1025}, "MAX_TOKENS", "from 1 to 1024"),
    ({"TEXT": "a", "MAX_TOKENS": True}, "MAX_TOKENS", "whole number"),
    ({"TEXT": "a", "MAX_TOKENS": np.array([5], np.int64)}, "MAX_TOKENS", "must be INT32"),
    ({"TEXT": "a", "MAX_TOKENS": np.array([[5]], np.int32)}, "MAX_TOKENS", r"shape \[1\]"),
    ({"TEXT": "a", "TEMPERATURE": -0.1}, "TEMPERATURE", "from 0 to 10"),
    ({"TEXT": "a", "TEMPERATURE": 11}, "TEMPERATURE", "from 0 to 10"),
    ({"TEXT": "a", "TEMPERATURE": float("nan")}, "TEMPERATURE", "from 0 to 10"),
    ({"TEXT": "a", "TEMPERATURE": "hot"}, "TEMPERATURE", "must be a number"),
    ({"TEXT": "a", "TOP_K": -1}, "TOP_K", "from 0"),
    ({"TEXT": "a", "TOP_K": 2_000_000}, "TOP_K", "to 1000000"),
    ({"TEXT": "a", "TOP_P": 0.0}, "TOP_P", "more than 0 and at most 1"),
    ({"TEXT": "a", "TOP_P": 1.01}, "TOP_P", "at most 1"),
    ({"TEXT": "a", "REPETITION_PENALTY": 0.009}, "REPETITION_PENALTY", "from 0.01 to 10"),
    ({"TEXT": "a", "REPETITION_PENALTY": np.array([np.inf], np.float32)}, "REPETITION_PENALTY", "from 0.01 to 10"),
    ({"TEXT": "a", "SEED": -1}, "SEED", "it must be from 0 to 18446744073709551615; choose another value"),
    ({"TEXT": "a", "SEED": 2**64}, "SEED", "from 0"),
    ({"TEXT": "a", "VOICE": "x"}, "VOICE", "inputs are TEXT, AUDIO"),
]


@pytest.mark.parametrize(("inputs", "field", "part"), BAD)
def test_bad_inputs(inputs: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(InvalidRequest, match=part) as error:
        parse_request(inputs, LIMITS)
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


_ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from([np.array(3), np.zeros(3, np.int32), np.array([b"x"], dtype=np.object_), np.array([None])]),
    st.lists(st.floats(width=32), max_size=5),
)


@given(inputs=st.dictionaries(st.sampled_from([field.name for field in INPUTS]), _ANYTHING))
def test_nothing_but_invalid_request_ever_comes_out(inputs: dict[str, Any]) -> None:
    try:
        request = parse_request(inputs, LIMITS)
    except InvalidRequest:
        return
    assert decode(*encode(Start(request.settings, ()))) == Start(request.settings, ())


def test_prompt_must_leave_room_for_one_token() -> None:
    check_prompt([0] * 2047, LIMITS)
    with pytest.raises(InvalidRequest, match=r"2048 tokens.*at most 2047") as error:
        check_prompt([0] * 2048, LIMITS, field="AUDIO")
    assert error.value.field == "AUDIO"


def test_limits_survive_the_manifest() -> None:
    assert Limits.from_dict(json.loads(json.dumps(LIMITS.to_dict()))) == LIMITS


def test_models_without_mctp_serve_vanilla() -> None:
    limits = Limits(2048, 1024, 512, mctp_modules=0, default_pattern=(8192, 0))
    assert parse_request({"TEXT": "a"}, limits).settings.mode == "vanilla"
    with pytest.raises(InvalidRequest, match="K = 0"):
        parse_request({"TEXT": "a", "MODE": "boost"}, limits)


def test_a_checkpoint_may_have_a_repetition_penalty_of_its_own() -> None:
    limits = replace(LIMITS, repetition_penalty=1.0)
    assert parse_request({"TEXT": "Hello"}, limits).settings.repetition_penalty == 1.0
    assert parse_request({"TEXT": "Hello", "REPETITION_PENALTY": 1.2}, limits).settings.repetition_penalty == 1.2
    assert parse_request({"TEXT": "Hello"}, LIMITS).settings.repetition_penalty == 1.05


def test_a_checkpoint_may_read_aloud_greedily() -> None:
    limits = replace(LIMITS, tts_samples=False)
    greedy = parse_request({"TEXT": "Hello", "TASK": "tts"}, limits).settings
    assert (greedy.temperature, greedy.top_k) == (0.0, 0)
    sampled = parse_request({"TEXT": "Hello", "TASK": "tts", "TEMPERATURE": 0.5}, limits).settings
    assert (sampled.temperature, sampled.top_k) == (0.5, 0)
