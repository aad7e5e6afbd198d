"""MESSAGES: what is a conversation in words, and every other text refused with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.past_messages import MAX_MESSAGES, MAX_MESSAGES_CHARACTERS, read_messages
from vita_audio.contract.request import check

HI = {"role": "user", "content": "Hi."}
HELLO = {"role": "assistant", "content": "Hello."}


def test_turns_come_back_in_their_order() -> None:
    messages = read_messages(json.dumps([HI, HELLO, HI, HELLO]))
    assert [(m.role, m.content) for m in messages] == [("user", "Hi."), ("assistant", "Hello.")] * 2


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "a list of 1"),
        ("[]", "a list of 1"),
        (json.dumps([HI, HELLO] * MAX_MESSAGES), "a list of 1"),
        (json.dumps([HI]), "ends with the user's turn"),
        (json.dumps([HELLO, HI]), "message 0 is of assistant"),
        (json.dumps([HI, HI]), "message 1 is of user"),
        (json.dumps([HI, {**HELLO, "name": "a"}]), "message 1 has a role"),
        (json.dumps([{"role": "system", "content": "a"}, HELLO]), "message 0 has a role"),
        (json.dumps([HI, {"role": "assistant", "content": None}]), "message 1 has a role"),
        (json.dumps([HI, {"role": "assistant", "content": " "}]), "message 1 is empty"),
        (json.dumps([HI, {"role": "assistant", "content": "\ud800"}]), "lone surrogate"),
        (" " * (MAX_MESSAGES_CHARACTERS + 1), "characters"),
    ],
)
def test_what_is_no_conversation_is_refused(sent: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        read_messages(sent)
    assert caught.value.field == "MESSAGES"
    assert len(str(caught.value)) < 500


@given(st.text(max_size=60) | st.recursive(st.none() | st.text(max_size=5), st.lists).map(json.dumps))
def test_any_other_text_is_one_error(sent: str) -> None:
    with pytest.raises(InvalidRequest, match="MESSAGES"):
        read_messages(sent)


def test_messages_and_history_exclude_each_other() -> None:
    inputs = {"TEXT": "And?", "MESSAGES": json.dumps([HI, HELLO])}
    assert check(inputs)["MESSAGES"]
    with pytest.raises(InvalidRequest, match="one of them"):
        check({**inputs, "HISTORY": [1, 2]})
    with pytest.raises(InvalidRequest, match="task tts"):
        check({**inputs, "TASK": "tts"})
