"""A Realtime session without a WebSocket: a test is its client, and every event of the server is checked.

Each event is read with the openai package's own type for it, so an event that its SDK could not read fails the test.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from gateway.access import Use
from gateway.realtime.outbox import Outbox
from gateway.realtime.protocol import Protocol
from gateway.realtime.session import RealtimeSession, Session
from gateway.realtime.talk import Talk
from vita_client import AsyncClient

Event = dict[str, Any]
_MEMBERS = get_args(get_args(RealtimeServerEvent)[0])
_TYPES = {get_args(member.model_fields["type"].annotation)[0]: TypeAdapter(member) for member in _MEMBERS}


def check_event(event: Event) -> None:
    """The openai package can read it."""
    _TYPES[event["type"]].validate_python(event)
    assert event["event_id"]


class FreeUse(Use):
    """Of a key without limits: what was used of it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def sound(self, seconds: float) -> None:
        self.seconds += seconds

    def check(self) -> None:
        pass


class Peer:
    """The client of one session."""

    def __init__(self, protocol: Protocol, outbox: Outbox, use: FreeUse) -> None:
        self.protocol, self.outbox, self.use = protocol, outbox, use
        self.events: list[Event] = []
        self._read = 0
        self._came = asyncio.Event()

    @property
    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def receive(self, text: str) -> None:
        event = json.loads(text)
        check_event(event)
        self.events.append(event)
        self._came.set()

    async def send(self, kind: str, **fields: Any) -> None:
        await self.protocol.handle(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str, seconds: float = 20) -> Event:
        """The next event of this kind; those before it are passed over."""

        async def wait() -> Event:
            while True:
                while self._read < len(self.events):
                    event = self.events[self._read]
                    self._read += 1
                    if event["type"] == kind:
                        return event
                self._came.clear()
                await self._came.wait()

        try:
            return await asyncio.wait_for(wait(), seconds)
        except asyncio.TimeoutError:
            raise AssertionError(f"no {kind} after {self.kinds}") from None

    async def error(self) -> Event:
        """The next error."""
        error: Event = (await self.until("error"))["error"]
        return error

    async def say(self, text: str, **response: Any) -> Event:
        """A typed message, and the end of the response to it."""
        await self.write(text)
        await self.send("response.create", response=response)
        done: Event = (await self.until("response.done"))["response"]
        return done

    async def write(self, text: str, role: str = "user", item_id: str | None = None) -> str:
        """A typed message; the id of its item."""
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": text}]
        item = {"type": "message", "role": role, "content": content} | ({"id": item_id} if item_id else {})
        await self.send("conversation.item.create", item=item)
        added: str = (await self.until("conversation.item.done"))["item"]["id"]
        return added

    async def speak(self, samples: NDArray[np.float32], piece_s: float = 0.1, pace: float = 0.0) -> None:
        """Speech at 16 kHz, appended in pieces, `pace` seconds of time for each second of it."""
        sound = pcm24(samples)
        size = 2 * int(24_000 * piece_s)
        for at in range(0, len(sound), size):
            await self.send("input_audio_buffer.append", audio=base64.b64encode(sound[at : at + size]).decode())
            await asyncio.sleep(piece_s * pace)


@asynccontextmanager
async def session(url: str, begins: Session | None = None, **changes: Any) -> AsyncIterator[Peer]:
    """A session over the server at `url`, greeted, with `changes` made to its session object."""
    use, outbox = FreeUse(), Outbox()
    async with AsyncClient(url) as client:

        @asynccontextmanager
        async def connect(before: AsyncClient | None) -> AsyncIterator[AsyncClient]:
            yield client

        protocol = Protocol(begins or RealtimeSession(id="sess_1", model="vita-audio"), Talk(connect), outbox, use)
        peer = Peer(protocol, outbox, use)
        protocol.open()
        sending = asyncio.create_task(outbox.run(peer.receive))
        try:
            await peer.until("session.created")
            if changes:
                await peer.send("session.update", session={"type": "realtime", **changes})
                await peer.until("session.updated")
            yield peer
        finally:
            await protocol.close()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def pcm24(samples: NDArray[np.float32]) -> bytes:
    """float32 [samples] at 16 kHz -> PCM at 24 kHz."""
    return (np.clip(soxr.resample(samples, 16_000, 24_000), -1, 1) * 32_767).astype("<i2").tobytes()


def question() -> NDArray[np.float32]:
    """ "What is four plus three?", with 0.5 s of silence before and 1 s after: float32 [samples] at 16 kHz."""
    path = Path(__file__).resolve().parents[2] / "examples" / "question.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    silence = np.zeros(16_000, np.float32)
    return np.concatenate([silence[:8000], samples, silence])
