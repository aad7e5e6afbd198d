"""The benchmark of the gateway: its Realtime client, its microphone, the process it watches, its table."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest

from benchmarks.gateway import Microphone, Session, interruption, shown
from benchmarks.gateway_process import GatewayProcess, listening
from server.errors import CannotStart
from vita_audio.contract.errors import VitaError

RECORD: dict[str, Any] = {
    "first_sound": [
        {"what": "a text", "direct": {"ms_p50": 100.0, "ms_p95": 120.0}, "gateway": {"ms_p50": 107.5, "ms_p95": 130.0}},
    ],
    "idle": {
        "sessions": 32, "share": 0.012, "share_alone": 0.007, "kib_each": 3061.4, "microphones": 4,
        "share_each_microphone": 0.05,
    },
    "barge_in": {
        "count": 40, "chunk_ms": 971.2,
        **{f"{name}_ms_p{part}": part for name in ("noticed", "last_sound", "slot", "free") for part in (50, 95)},
    },
}  # fmt: skip


class Socket:
    """Gives events, and keeps what is sent."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events, self.sent = list(events), list[dict[str, Any]]()

    async def recv(self) -> str:
        return json.dumps(self.events.pop(0))

    async def send(self, text: str) -> None:
        self.sent.append(json.loads(text))


def session(*events: dict[str, Any]) -> tuple[Session, Socket]:
    socket = Socket(*events)
    return Session(socket), socket  # type: ignore[arg-type]


def test_the_table_says_what_was_measured_and_what_is_promised() -> None:
    lines = {line[0]: line[1:] for line in shown(RECORD)}
    assert lines["the gateway adds, ms"] == ["7.5", "10.0", "P50 at most 15"]
    assert lines["32 idle sessions, share of a core (none: 0.7%)"] == ["1.2%", "", "below 5%"]
    assert lines["memory of an idle session, KiB"] == ["3061", "", ""]
    assert lines["interrupting speech to last sound of the answer, ms"] == ["50", "95", "P95 at most 400"]
    assert lines["cancel to slot free, ms"] == ["50", "95", "at most a chunk: 971"]
    assert [len(line) for line in lines.values()] == [3] * len(lines)


def test_the_table_has_only_the_parts_that_were_measured() -> None:
    assert shown({}) == []
    assert len(shown({"barge_in": RECORD["barge_in"]})) == 4


def test_a_client_notes_when_its_last_sound_came() -> None:
    talk, _ = session({"type": "response.output_audio.delta"}, {"type": "response.done"}, {"type": "session.updated"})
    assert asyncio.run(talk.until("response.done")) == {"type": "response.done"}
    came_s = talk.last_sound_s
    assert came_s > 0
    asyncio.run(talk.until("session.updated"))
    assert talk.last_sound_s == came_s


def test_an_error_of_the_gateway_ends_the_measurement() -> None:
    talk, _ = session({"type": "error", "error": {"message": "no such field"}})
    with pytest.raises(VitaError, match="no such field"):
        asyncio.run(talk.until("session.created"))


def test_a_microphone_is_silent_until_it_is_spoken_into() -> None:
    async def record() -> tuple[list[np.ndarray], float]:
        talk, socket = session()
        microphone = Microphone(talk, np.full(700, 0.5, np.float32))
        running = asyncio.create_task(microphone.run())
        await asyncio.sleep(0.05)
        assert not microphone.spoke_s.done()
        microphone.speak()
        spoke_s = await microphone.spoke_s
        while len(socket.sent) < 8:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait({running})
        return [np.frombuffer(base64.b64decode(each["audio"]), "<i2") for each in socket.sent], spoke_s

    pieces, spoke_s = asyncio.run(record())
    assert spoke_s > 0
    assert {len(piece) for piece in pieces} == {480}  # 20 ms
    whole = np.concatenate(pieces)
    spoken = np.flatnonzero(whole)
    assert spoken[0] % 480 == 0
    assert spoken[0] > 0
    assert len(spoken) == spoken[-1] - spoken[0] + 1 == 700
    assert set(whole[spoken]) == {16_383}


def test_the_interrupting_speech_begins_loud() -> None:
    speech = interruption()
    assert abs(speech[0]) > 0.01
    assert np.abs(speech[:2400]).max() > 0.1
    assert 24_000 < len(speech) < 48_000


@pytest.mark.parametrize(
    ("log", "url"),
    [
        ([], ""),
        (["Traceback", "[]", '{"event": "draining"}'], ""),
        (["a warning", '{"event": "listening", "url": "http://127.0.0.1:5"}'], "http://127.0.0.1:5"),
    ],
)
def test_the_address_is_read_from_the_log(log: list[str], url: str) -> None:
    assert listening(log) == url


def test_a_gateway_that_does_not_start_is_an_error() -> None:
    with pytest.raises(CannotStart, match="the gateway does not listen"):
        GatewayProcess("localhost:1", "--body-timeout-s", "nonsense")
