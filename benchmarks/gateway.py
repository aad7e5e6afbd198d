"""What the gateway adds: time to the first sound, idle sessions, and how soon speech ends an answer (barge-in).

    python -m benchmarks.gateway --engines engines/cpu              (about 4 minutes)

A real server and a gateway process on loopback. "first-sound": the same text, by turns through gRPC and through the
gateway, from sending it to the first audible sound. "idle": Realtime sessions that do nothing, and such with an open
microphone in a silent room. "barge-in": a microphone at 24 kHz that runs in real time and is spoken into while a long
answer comes: from sending the first loud sample to `speech_started`, to the last sound of the answer, and until another
caller, whose request is sent at `speech_started`, has its turn in the only slot; and from that cancel until the
slot is free: that is how long the server says that the other caller's request was prepared and waited.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soxr
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.closed_loop import QUESTION
from benchmarks.gateway_process import GatewayProcess
from benchmarks.record import Results, number, record_head, spread
from loadtest.driver import is_audible
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.stopping import stop_on_signals
from vita_client import AsyncClient, Pcm, StatusUpdate
from vita_client.audio import load_speech

PARTS = ("first-sound", "idle", "barge-in")
#: What is promised, on two cores with one stream (issue 22).
MORE_MS, IDLE_SHARE, BARGE_IN_MS = 15.0, 0.05, 400.0
_SLOTS, _QUEUE = 1, 4
_TEXT, _QUESTION, _MAX_TOKENS = "The window is open.", "What is four plus three?", 60
#: The small checkpoint goes on for a minute after this, where it decodes token by token.
_ENDLESS, _ENDLESS_MODEL = "spoon " * 100, "vita-audio-vanilla"
_WARM_UP = 2
_RATE_HZ = 24_000
_PIECE_S = 0.02
#: -40 dB of full scale; the recording has noise of -55 dB.
_LOUD = 0.01
_MICROPHONES = 4
_PATIENCE_S = 30.0

Row = dict[str, Any]
Samples = np.ndarray


class Session:
    """A client of one Realtime session. `last_sound_s`: when its last sound came, on `time.perf_counter`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.last_sound_s = 0.0

    async def send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def ask(self, text: str, **response: Any) -> None:
        """A typed turn, to be answered."""
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.send("response.create", response=response)

    async def until(self, *kinds: str) -> Row:
        """The next event of these kinds. Raises VitaError: an error came, or nothing."""
        while True:
            try:
                event: Row = json.loads(await asyncio.wait_for(self._socket.recv(), _PATIENCE_S))
            except asyncio.TimeoutError:
                raise VitaError(f"nothing came for {_PATIENCE_S:g} s; {' or '.join(kinds)} was expected") from None
            if event["type"] == "error":
                raise VitaError(f"the gateway refused an event: {event['error']['message']}")
            if event["type"] == "response.output_audio.delta":
                self.last_sound_s = time.perf_counter()
            if event["type"] in kinds:
                return event


@asynccontextmanager
async def session(url: str, model: str = "vita-audio") -> AsyncIterator[Session]:
    """A session that was greeted. Browsers send no pings either."""
    socket = connect(f"ws{url.removeprefix('http')}/v1/realtime?model={model}", ping_interval=None, max_size=None)
    async with socket as open_socket:
        talk = Session(open_socket)
        await talk.until("session.created")
        yield talk


# Time to first sound


async def _direct_speech(client: AsyncClient, seed: int) -> float:
    sent_s, first_s = time.perf_counter(), None
    async with client.read(_TEXT, seed=seed) as reading:
        async for event in reading:
            if first_s is None and isinstance(event, Pcm) and is_audible(event.samples):
                first_s = time.perf_counter()
    return _ms(sent_s, first_s)


async def _http_speech(http: httpx.AsyncClient, seed: int) -> float:
    sent_s, first_s, rest = time.perf_counter(), None, b""
    asked = {"model": "vita-audio", "input": _TEXT, "response_format": "pcm", "seed": seed}
    async with http.stream("POST", "/v1/audio/speech", json=asked) as answer:
        answer.raise_for_status()
        async for piece in answer.aiter_raw():
            rest += piece
            if first_s is None and is_audible(np.frombuffer(rest[: len(rest) // 2 * 2], "<i2")):
                first_s = time.perf_counter()
            rest = rest[len(rest) // 2 * 2 :]
    return _ms(sent_s, first_s)


async def _direct_turn(client: AsyncClient) -> float:
    talk = client.conversation(max_tokens=_MAX_TOKENS)
    sent_s, first_s = time.perf_counter(), None
    async with await talk.respond(_QUESTION) as answer:
        async for event in answer:
            if first_s is None and isinstance(event, Pcm) and is_audible(event.samples):
                first_s = time.perf_counter()
    return _ms(sent_s, first_s)


async def _realtime_turn(url: str) -> float:
    async with session(url) as talk:
        sent_s, first_s = time.perf_counter(), None
        await talk.ask(_QUESTION, max_output_tokens=_MAX_TOKENS)
        while (event := await talk.until("response.output_audio.delta", "response.done"))["type"] != "response.done":
            if first_s is None and is_audible(np.frombuffer(base64.b64decode(event["delta"]), "<i2")):
                first_s = time.perf_counter()
    return _ms(sent_s, first_s)


def _ms(start_s: float, end_s: float | None) -> float:
    if end_s is None:
        raise VitaError("an answer had no sound")
    return 1e3 * (end_s - start_s)


async def first_sound(server: str, gateway: str, repeats: int) -> list[Row]:
    """Both ways by turns; which one is first changes, too."""
    async with AsyncClient(server) as client, httpx.AsyncClient(base_url=gateway, timeout=_PATIENCE_S) as http:
        ways: dict[str, tuple[Callable[[int], Awaitable[float]], ...]] = {
            "a text read aloud, POST /v1/audio/speech": (
                lambda seed: _direct_speech(client, seed), lambda seed: _http_speech(http, seed),
            ),
            "an answer, WS /v1/realtime": (
                lambda _: _direct_turn(client), lambda _: _realtime_turn(gateway),
            ),
        }  # fmt: skip
        rows = []
        for what, both in ways.items():
            waits: tuple[list[float], list[float]] = ([], [])
            for seed in range(_WARM_UP + repeats):
                for way in (0, 1) if seed % 2 else (1, 0):
                    waits[way].append(await both[way](seed))
            direct, through = (spread("ms", each[_WARM_UP:]) for each in waits)
            rows.append({"what": what, "repeats": repeats, "direct": direct, "gateway": through})
    return rows


# Idle sessions


async def idle(gateway: GatewayProcess, sessions: int, seconds: float) -> Row:
    """Shares are of one core. What the first session loads is not counted as a session's."""
    async with session(gateway.url), AsyncExitStack() as opened:
        alone, before = await gateway.share(seconds), gateway.resident_bytes()
        talks = [await opened.enter_async_context(session(gateway.url)) for _ in range(sessions)]
        share, bytes_each = await gateway.share(seconds), (gateway.resident_bytes() - before) / sessions
        microphones = [asyncio.create_task(Microphone(talk).run()) for talk in talks[:_MICROPHONES]]
        listening = await gateway.share(seconds)
        for microphone in microphones:
            microphone.cancel()
        await asyncio.gather(*microphones, return_exceptions=True)
    return {
        "sessions": sessions, "seconds": seconds, "share": share, "share_alone": alone, "kib_each": bytes_each / 1024,
        "microphones": len(microphones), "share_each_microphone": (listening - share) / max(1, len(microphones)),
    }  # fmt: skip


# Barge-in


@dataclass(frozen=True, slots=True)
class BargeIn:
    """In ms after the first loud sample was sent. A last sound that had come before that counts as 0.

    `free_ms`: after the cancel, which goes to the server with `speech_started`.
    """

    noticed_ms: float
    last_sound_ms: float
    slot_ms: float
    free_ms: float


class Microphone:
    """Sends what it hears in real time: silence, and `speech` (float32 [samples], 24 kHz) once `speak` was called."""

    def __init__(self, talk: Session, speech: Samples | None = None) -> None:
        self._talk, self._speech = talk, np.zeros(0, np.float32) if speech is None else speech
        self._speaks = False
        #: On `time.perf_counter`, when the first sample of `speech` was sent.
        self.spoke_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def speak(self) -> None:
        self._speaks = True

    async def run(self) -> None:
        """Until cancelled."""
        size, next_s = int(_PIECE_S * _RATE_HZ), time.perf_counter()
        while True:
            piece = np.zeros(size, np.float32)
            if self._speaks:
                heard, self._speech = self._speech[:size], self._speech[size:]
                piece[: len(heard)] = heard
            audio = base64.b64encode((piece * 32_767).astype("<i2").tobytes()).decode()
            sent_s = time.perf_counter()
            await self._talk.send("input_audio_buffer.append", audio=audio)
            if self._speaks and not self.spoke_s.done():
                self.spoke_s.set_result(sent_s)
            next_s += _PIECE_S
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))


def interruption() -> Samples:
    """The spoken question of the examples from its first loud sample on: float32 [samples], 24 kHz."""
    speech = soxr.resample(load_speech(QUESTION), INPUT_SAMPLE_RATE_HZ, _RATE_HZ)
    return speech[int(np.argmax(np.abs(speech) > _LOUD)) :]


async def barge_in(client: AsyncClient, url: str, after_s: float) -> BargeIn | None:
    """Speech that begins `after_s` after the first sound of an answer; None: the answer had ended by itself.

    Args:
        client: of another caller.
    """

    async def slot() -> tuple[float, float]:
        """When the other caller had its turn, and how many ms the slot had been waited for."""
        async with client.stream(_QUESTION, task="text", max_tokens=1) as stream:
            async for event in stream:
                if isinstance(event, StatusUpdate):
                    spent_ms = event.status.timings_ms
                    return time.perf_counter(), spent_ms.get("prompt", 0.0) + spent_ms.get("lm_queue", 0.0)
        raise VitaError("the other caller's stream had no status")

    async with session(url, _ENDLESS_MODEL) as talk:
        # What is spoken would be read ahead, and take a slot of its own.
        detection = {"type": "server_vad", "create_response": False}
        changes = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        await talk.send("session.update", session=changes)
        await talk.until("session.updated")
        microphone = Microphone(talk, interruption())
        running = asyncio.create_task(microphone.run())
        try:
            await talk.ask(_ENDLESS)
            await talk.until("response.output_audio.delta")
            asyncio.get_running_loop().call_later(after_s, microphone.speak)
            event = await talk.until("input_audio_buffer.speech_started", "response.done")
            noticed_s = time.perf_counter()
            if event["type"] == "response.done":
                return None
            waiting = asyncio.create_task(slot())
            details = (await talk.until("response.done"))["response"]["status_details"] or {}
            slot_s, free_ms = await waiting
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    if details.get("reason") != "turn_detected":
        return None
    spoke_s = microphone.spoke_s.result()
    noticed_ms, last_sound_ms, slot_ms = (
        1e3 * max(0.0, end_s - spoke_s) for end_s in (noticed_s, talk.last_sound_s, slot_s)
    )
    return BargeIn(noticed_ms, last_sound_ms, slot_ms, free_ms)


async def first_chunk_ms(client: AsyncClient) -> float:
    """Sound of an answer's first chunk, the shortest that the server makes."""
    async with client.stream(_QUESTION, max_tokens=_MAX_TOKENS) as stream:
        async for event in stream:
            if isinstance(event, Pcm) and len(event.samples):
                return 1e3 * event.seconds
    raise VitaError("an answer had no sound")


async def barge_ins(server: str, gateway: str, count: int) -> Row:
    choice, seen = random.Random(1), list[BargeIn]()
    async with AsyncClient(server) as client:
        chunk_ms = await first_chunk_ms(client)
        for _ in range(2 * count):
            if len(seen) < count and (one := await barge_in(client, gateway, choice.uniform(0.1, 0.6))) is not None:
                seen.append(one)
    if not seen:
        raise VitaError("every answer had ended before it was interrupted")
    row: Row = {"count": len(seen), "chunk_ms": chunk_ms}
    for name in ("noticed_ms", "last_sound_ms", "slot_ms", "free_ms"):
        row |= spread(name, (getattr(each, name) for each in seen))
    return row


def shown(record: Mapping[str, Any]) -> list[list[str]]:
    """Lines of a table: what, P50, P95, the aim."""
    lines = list[list[str]]()
    for row in record.get("first_sound", []):
        direct, through = row["direct"], row["gateway"]
        for name, each in (("gRPC", direct), ("gateway", through)):
            lines.append([f"first sound of {row['what']}: {name}, ms", *map(number, each.values()), ""])
        more = [through[name] - direct[name] for name in ("ms_p50", "ms_p95")]
        lines.append(["the gateway adds, ms", *(number(each, 1) for each in more), f"P50 at most {MORE_MS:g}"])
    if row := record.get("idle"):
        what = f"{row['sessions']} idle sessions, share of a core (none: {row['share_alone']:.1%})"
        lines.append([what, f"{row['share']:.1%}", "", f"below {IDLE_SHARE:.0%}"])
        lines.append(["memory of an idle session, KiB", number(row["kib_each"]), "", ""])
        lines.append(["an open microphone, share of a core", f"{row['share_each_microphone']:.1%}", "", ""])
    if row := record.get("barge_in"):
        for name, what, aim in (
            ("noticed", "interrupting speech to speech_started", ""),
            ("last_sound", "interrupting speech to last sound of the answer", f"P95 at most {BARGE_IN_MS:g}"),
            ("slot", "interrupting speech to another caller's turn in the slot", ""),
            ("free", "cancel to slot free", f"at most a chunk: {number(row['chunk_ms'])}"),
        ):
            values = (number(row[f"{name}_ms_p{percent}"]) for percent in (50, 95))
            lines.append([f"{what}, ms", *values, aim])
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=60, help="of each way to a first sound")
    parser.add_argument("--sessions", type=int, default=32, help="that are idle")
    parser.add_argument("--seconds", type=float, default=20.0, help="in which their share is counted")
    parser.add_argument("--interruptions", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None, help="also write the record as JSON here")
    options = parser.parse_args(arguments)
    results = Results(options.out, record_head("benchmarks.gateway", arguments))
    asked = ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0, slots=_SLOTS, queue=_QUEUE)
    with TritonServer(asked) as server, GatewayProcess(server.grpc_url) as gateway:
        if "first-sound" in options.parts:
            results.save(first_sound=asyncio.run(first_sound(server.grpc_url, gateway.url, options.repeats)))
        if "idle" in options.parts:
            results.save(idle=asyncio.run(idle(gateway, options.sessions, options.seconds)))
        if "barge-in" in options.parts:
            results.save(barge_in=asyncio.run(barge_ins(server.grpc_url, gateway.url, options.interruptions)))
    console = Console(width=max(120, Console().width))
    console.print(f"{results.fields['command']}\n{results.fields['machine']}, revision {results.fields['revision']}")
    table = Table("", "P50", "P95", "aim", title="The gateway")
    for line in shown(results.fields):
        table.add_row(*line)
    console.print(table)
    return 0


if __name__ == "__main__":
    stop_on_signals()  # server and gateway end with it
    sys.exit(main())
