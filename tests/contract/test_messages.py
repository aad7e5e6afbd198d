"""Messages between the models: every one survives the trip, every broken one is refused with its field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract import messages
from vita_audio.contract.errors import BadMessage
from vita_audio.contract.messages import (
    MAX_REASON,
    MAX_TEXT_OF_A_MESSAGE,
    STAGES,
    VERSION,
    Cancel,
    Delta,
    GenerationSettings,
    Message,
    Probe,
    Released,
    Start,
    Status,
    decode,
    encode,
)
from vita_audio.contract.modes import NAMED_MODES

SETTINGS = GenerationSettings("tts", "boost", (1, 10, 4, 10), 100, 1.0, 50, 0.9, 1.05, 7, {"prompt": 1.5})
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=20)
TIMINGS = st.dictionaries(st.sampled_from(["prompt", "lm", "lm_queue"]), st.floats(0, 1e6))
STREAMS = st.text(min_size=1, max_size=64)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Start,
        st.builds(
            GenerationSettings,
            st.sampled_from(["chat", "tts", "asr", "text"]),
            st.text(max_size=40),
            st.sampled_from(sorted(NAMED_MODES.values())),
            st.integers(1, 10_000),
            st.floats(0, 10),
            st.integers(0, 1_000_000),
            st.floats(0, 1, exclude_min=True),
            st.floats(0, 10, exclude_min=True),
            st.integers(0, 2**64 - 1),
            TIMINGS,
            st.integers(0, 1),
        ),
        IDS,
    ),
    st.builds(
        Delta,
        st.builds(
            Status,
            STREAMS,
            st.integers(0, 100_000),
            st.sampled_from(["running", "done", "cancelled", "failed"]),
            st.text(max_size=100),
            st.sampled_from(["chat", ""]),
            st.text(max_size=10),
            st.integers(0, 2**64 - 1),
            TIMINGS,
            st.sampled_from(["", "cancelled"]),
            st.integers(0, 4096),
            st.integers(0, 4096),
        ),
        IDS,
        st.just(()) | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
    ),
    st.builds(Probe, STREAMS),
    st.builds(Cancel, STREAMS),
    st.builds(Released, STREAMS),
)


@given(MESSAGES)
def test_every_message_survives_the_trip(message: Message) -> None:
    text, tokens = encode(message)
    assert decode(text, tokens) == message
    assert decode(text.encode(), tokens) == message


HUGE = st.sampled_from([2**64, -(2**63) - 1, 10**4000, 1e308, float("inf"), float("nan"), "\ud800", "\x00\n\x1b[31m"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | HUGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(MESSAGES, st.data())
def test_any_value_in_any_field_is_read_or_refused(message: Message, data: st.DataObject) -> None:
    """Never another exception than BadMessage, and what is read can be written again."""
    text, tokens = encode(message)
    values = json.loads(text)
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(JSON)
    try:
        read = decode(json.dumps(values), tokens)
    except BadMessage as error:
        refused = error
    else:
        assert decode(*encode(read)) == read
        return
    assert refused.code == "bad_message"
    assert refused.field


#: What JSON is made of, and what is none.
PIECES = st.sampled_from(
    [
        b"",
        b"{",
        b"}",
        b"[" * 2000,
        b"]",
        b'"',
        b",",
        b":",
        b"\\u",
        b"\xff",
        b"\x00",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
    ]
)


@given(MESSAGES, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), PIECES | st.binary(max_size=4)), max_size=4))
def test_a_message_with_bytes_cut_and_put_in_is_read_or_refused(
    message: Message, edits: list[tuple[float, int, bytes]]
) -> None:
    text, tokens = encode(message)
    raw = text.encode()
    for where, cut, put in edits:
        position = int(where * len(raw))
        raw = raw[:position] + put + raw[position + cut :]
    try:
        read = decode(raw, tokens)
    except BadMessage as error:
        refused = error
    else:
        assert decode(*encode(read)) == read
        return
    assert refused.field
    assert len(str(refused)) < 400


@pytest.mark.parametrize("depth", [100, 900, 960, 990, 10_000])
@pytest.mark.parametrize("field", ["stream", "v", "kind"])
def test_deep_values_are_refused(depth: int, field: str) -> None:
    """At any depth: what the reader of JSON still takes, the error must be able to quote."""
    for deep in range(depth, depth + 30):
        values = {"v": f"{VERSION}", "kind": '"cancel"', "stream": '"a"', field: "[" * deep + "]" * deep}
        with pytest.raises(BadMessage):
            decode("{" + ",".join(f'"{name}":{value}' for name, value in values.items()) + "}")


def test_the_longest_message_is_read_and_a_longer_one_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    far = "\U0001f600"  # escaped with 12 characters
    longest = Status(far * 64, 2**31 - 1, "cancelled", far * MAX_REASON, "text", far * 1024, 2**64 - 1, {}, far * 64)
    longest = replace(longest, timings_ms=dict.fromkeys(STAGES, 123456789.123456))
    assert decode(*encode(Delta(longest, ()))) == Delta(longest, ())
    assert decode(encode(Probe("a"))[0].ljust(MAX_TEXT_OF_A_MESSAGE)) == Probe("a")
    monkeypatch.setattr(messages.json, "loads", lambda _: pytest.fail("parsed"))
    with pytest.raises(BadMessage, match="at most 32768 are read"):
        decode(" " * (MAX_TEXT_OF_A_MESSAGE + 1))


@given(st.text() | st.binary() | JSON.map(json.dumps))
def test_any_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadMessage):
        decode(text)


def changed(message: Message, **values: Any) -> str:
    return json.dumps({**json.loads(encode(message)[0]), **values})


@pytest.mark.parametrize(
    ("text", "tokens", "words"),
    [
        ("{", (), "MESSAGE: '{' is not valid: it is not JSON"),
        ("[" * 100_000, (), "MESSAGE"),
        ("[1]", (), "not a JSON object"),
        (changed(Cancel("a"), v=VERSION + 1), (), f"v: {VERSION + 1} is not valid: this model reads version {VERSION}"),
        (changed(Cancel("a"), v=True), (), "v: True"),
        (changed(Cancel("a"), kind="append"), (), "kind: 'append' is not valid: it is one of start, delta, probe"),
        (changed(Cancel("a"), kind=[]), (), r"kind: \[\]"),
        (changed(Cancel("a"), more=1), (), "a cancel has the fields stream"),
        (changed(Cancel("a"), kind="released", stream=""), (), "stream: '' is not valid: a text of 1 to 64"),
        (changed(Cancel("a"), stream=5), (), "stream: 5"),
        (changed(Start(SETTINGS, ()), pattern=[1, 10, 4]), (), "pattern: .* pairs m,n"),
        (changed(Start(SETTINGS, ()), pattern=[1, "a"]), (), "pattern"),
        (changed(Start(SETTINGS, ()), seed=-1), (), "seed: -1"),
        (changed(Start(SETTINGS, ()), seed=True), (), "seed: True"),
        (changed(Start(SETTINGS, ()), temperature=float("nan")), (), "temperature: nan"),
        (changed(Start(SETTINGS, ()), repetition_penalty=0), (), "repetition_penalty: 0"),
        (changed(Start(SETTINGS, ()), timings_ms={"lm": -1}), (), "timings_ms"),
        (changed(Start(SETTINGS, ()), timings_ms={"nap": 1}), (), "timings_ms: .* for any of prompt, "),
        (changed(Start(SETTINGS, ()), task="sing"), (), "task: 'sing' is not valid: one of chat, tts, asr, text"),
        (changed(Start(SETTINGS, ()), task="\ud800"), (), "task"),
        (changed(Start(SETTINGS, ())), (3, -1), "TOKENS: '2 ids' is not valid"),
        (changed(Start(SETTINGS, ()), read_only=2), (), "read_only: 2 is not valid"),
        (
            changed(Delta(Status("s1", 0, "running"), ()), prompt_ids=3),
            (5, 6),
            "prompt_ids: 3 is not valid: TOKENS has 2",
        ),
        (changed(Delta(Status("a", 0, "running"), ()), state="gone"), (), "state: 'gone' is not valid: one of running"),
        (changed(Delta(Status("a", 0, "running"), ()), index=1.0), (), "index: 1.0"),
    ],
)
def test_what_is_wrong_is_named_in_one_short_line(text: str, tokens: tuple[int, ...], words: str) -> None:
    with pytest.raises(BadMessage, match=words) as caught:
        decode(text, tokens)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("message", "field", "last", "beyond"),
    [
        (Cancel("a"), "stream", "a" * 64, "a" * 65),
        (Delta(Status("a", 0, "failed"), ()), "reason", "a" * MAX_REASON, "a" * (MAX_REASON + 1)),
        (Delta(Status("a", 0, "failed"), ()), "code", "a" * 64, "a" * 65),
        (Delta(Status("a", 0, "failed"), ()), "mode", "a" * 1024, "a" * 1025),
        (Delta(Status("a", 0, "failed"), ()), "index", 2**31 - 1, 2**31),
        (Delta(Status("a", 0, "failed"), ()), "timings_ms", {"lm": 1e9}, {"lm": 1.1e9}),
        (Start(SETTINGS, ()), "seed", 2**64 - 1, 2**64),
        (Start(SETTINGS, ()), "top_k", 2**31 - 1, 2**31),
        (Start(SETTINGS, ()), "max_tokens", 1 << 20, (1 << 20) + 1),
        (Start(SETTINGS, ()), "max_tokens", 1, 0),
        (Start(SETTINGS, ()), "temperature", 1000.0, 1000.1),
        (Start(SETTINGS, ()), "top_p", 1.0, 1.1),
        (Start(SETTINGS, ()), "top_p", 5e-324, 0.0),
        (Start(SETTINGS, ()), "repetition_penalty", 1000.0, 1000.1),
    ],
)
def test_the_last_value_of_each_field_is_read_and_the_next_is_not(
    message: Message, field: str, last: Any, beyond: Any
) -> None:
    decode(changed(message, **{field: last}))
    with pytest.raises(BadMessage, match=f"^{field}: ") as caught:
        decode(changed(message, **{field: beyond}))
    assert caught.value.field == field


def test_a_message_has_a_bounded_number_of_ids() -> None:
    read = decode(changed(Start(SETTINGS, ())), range(1 << 20))
    assert isinstance(read, Start)
    assert len(read.tokens) == 1 << 20
    with pytest.raises(BadMessage, match="TOKENS: '1048577 ids' is not valid"):
        decode(changed(Start(SETTINGS, ())), range((1 << 20) + 1))


def test_status_keeps_what_an_older_reader_needs() -> None:
    status = Status("a", 3, "failed", "it broke", "tts", "boost", 7, {"lm": 1.5}, "internal_error")
    assert Status.from_json(status.to_json()) == status
    assert json.loads(status.to_json())["state"] == "failed"
    assert (status.final, Status("a", 0, "running").final) == (True, False)


def test_embeddings_of_a_start_come_as_they_were_sent() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    start = Start(SETTINGS, [5, 6, 6], rows)
    read = decode(*encode(start), start.embeddings)
    assert isinstance(read, Start)
    assert np.array_equal(read.embeddings, rows)
    bare = decode(*encode(start))
    assert isinstance(bare, Start)
    assert bare.embeddings.shape == (0, 0)


@pytest.mark.parametrize("rows", [np.zeros((4, 2), np.float32), np.zeros(2, np.float32), np.zeros((1, 2))])
def test_embeddings_that_fit_no_prompt_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(BadMessage, match=r"EMBEDDINGS: .* float32 \[n, hidden size\], at most a row for each of 3 ids"):
        decode(*encode(Start(SETTINGS, [5, 6, 6])), rows)
