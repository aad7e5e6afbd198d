"""The seal: what was sealed opens as it was; whatever else a client may send is refused in one fixed line."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serving import seal as sealing
from serving.seal import MAX_AGE_S, MAX_BYTES, REFUSAL, SEAL_BYTES, SECRET_BYTES, Seal, new_secret
from vita_audio.contract.errors import BadMessage, EngineError
from vita_audio.contract.limits import MAX_AUDIO_SECONDS, MAX_HISTORY_TOKENS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

SEAL = Seal(new_secret())
BYTES = st.binary(max_size=200)


def refused(seal: Seal, sealed: bytes, payload: bytes = b"") -> None:
    with pytest.raises(BadMessage) as caught:
        seal.open(sealed, payload)
    assert str(caught.value) == REFUSAL


@given(BYTES, BYTES)
def test_what_was_sealed_opens_as_often_as_it_comes(text: bytes, payload: bytes) -> None:
    sealed = SEAL.seal(text, payload)
    assert SEAL.open(sealed, payload) == text
    assert SEAL.open(sealed, payload) == text


@given(BYTES, BYTES, st.data())
def test_one_changed_byte_anywhere_is_noticed(text: bytes, payload: bytes, data: st.DataObject) -> None:
    sealed = bytearray(SEAL.seal(text, payload))
    whole = sealed + payload
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    refused(SEAL, bytes(whole[: len(sealed)]), bytes(whole[len(sealed) :]))


@given(BYTES, BYTES, st.integers(0, 400))
def test_the_border_between_text_and_payload_is_sealed(text: bytes, payload: bytes, border: int) -> None:
    whole = SEAL.seal(text, payload) + payload
    assume(min(border, len(whole)) != len(whole) - len(payload))
    refused(SEAL, whole[:border], whole[border:])


@given(BYTES, BYTES, st.integers(1, 200))
def test_the_border_between_payload_and_rows_is_sealed(payload: bytes, rows: bytes, moved: int) -> None:
    sealed, whole = SEAL.seal(b"text", payload, rows), payload + rows
    assert SEAL.open(sealed, payload, rows) == b"text"
    border = (len(payload) + moved) % (len(whole) + 1)
    assume(border != len(payload))
    with pytest.raises(BadMessage, match=REFUSAL):
        SEAL.open(sealed, whole[:border], whole[border:])


@given(st.binary(max_size=300), BYTES)
def test_anything_else_is_refused(sealed: bytes, payload: bytes) -> None:
    refused(SEAL, sealed, payload)


def test_the_seal_of_another_start_is_refused() -> None:
    refused(Seal(new_secret()), SEAL.seal(b"text"))


def test_two_seals_of_one_message_differ() -> None:
    assert SEAL.seal(b"text") != SEAL.seal(b"text")


def test_a_model_may_accept_each_message_once() -> None:
    once = Seal(new_secret(), once=True)
    first, second = once.seal(b"text"), once.seal(b"text")
    assert (once.open(first), once.open(second)) == (b"text", b"text")
    refused(once, first)
    refused(once, second)


def test_an_old_message_is_refused_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(sealing.time, "monotonic_ns", lambda: int(now * 1e9))
    monkeypatch.setattr(sealing.time, "monotonic", lambda: now)
    once = Seal(new_secret(), once=True)
    late, replayed = once.seal(b"late"), once.seal(b"replayed")
    assert once.open(replayed) == b"replayed"
    now += MAX_AGE_S - 0.1
    assert once.open(late) == b"late"
    refused(once, replayed)
    now += 0.2
    refused(once, late)
    refused(once, replayed)
    for _ in range(3):
        now += MAX_AGE_S + 1
        once.open(once.seal(b"new"))
    assert len(once._opened) == 1


def test_what_is_too_large_is_refused_without_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = bytes(int(4 * INPUT_SAMPLE_RATE_HZ * MAX_AUDIO_SECONDS))
    assert len(longest) + 4 * MAX_HISTORY_TOKENS < MAX_BYTES  # the longest speech, and the ids of a prompt
    sealed = SEAL.seal(b"", bytes(MAX_BYTES))
    assert SEAL.open(sealed, bytes(MAX_BYTES)) == b""
    monkeypatch.setattr(sealing.hmac, "digest", lambda *_: pytest.fail("hashed"))
    refused(SEAL, sealed, bytes(MAX_BYTES + 1))
    refused(SEAL, sealed[: SEAL_BYTES - 1])


@pytest.mark.parametrize("secret", ["", "x" * 64, "ab" * (SECRET_BYTES - 1), "é"])
def test_a_server_without_a_secret_does_not_start(secret: str) -> None:
    with pytest.raises(EngineError, match="VITA_SECRET is not 32 bytes") as caught:
        Seal(secret)
    assert not secret or secret not in str(caught.value)
