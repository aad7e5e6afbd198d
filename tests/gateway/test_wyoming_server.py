"""Wyoming over TCP, over the protocol double: the package's client, and raw bytes where it would not send them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event, async_read_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeTextFormat,
    SynthesizeVoice,
)

from cancellation import assert_never_lost
from client_protocol_double import ProtocolDouble, chunk_pcm, chunk_text
from gateway.context import Gateway
from gateway.settings import Settings
from gateway.wyoming_input import BoundedReader, Bounds
from gateway.wyoming_server import VOICE, WyomingServer
from waiting import until as wait_until

SHAPE = {"rate": 16_000, "width": 2, "channels": 1}
START = AudioStart(**SHAPE).event()
SPEECH = AudioChunk(audio=bytes(16_000), **SHAPE).event()  # half a second
STOP = AudioStop().event()
Test = Callable[[WyomingServer], Awaitable[None]]


def serve(double: ProtocolDouble, test: Test, bounds: Bounds = Bounds()) -> None:  # noqa: B008  it is frozen
    """Run a test's coroutine beside a server; neither may take long."""

    async def beside() -> None:
        gateway = Gateway(Settings(servers=(double.url,)))
        server = WyomingServer(gateway, "127.0.0.1", 0, bounds)
        await server.listen()
        try:
            await asyncio.wait_for(test(server), 60)
        finally:
            await server.close()
            await gateway.upstreams.close()

    asyncio.run(beside())


def client_of(server: WyomingServer) -> AsyncTcpClient:
    return AsyncTcpClient("127.0.0.1", server.port)


async def ask(client: AsyncTcpClient, *events: Event, until: str) -> list[Event]:
    """Send events, then read up to one of type `until`, or to the end."""
    for event in events:
        await client.write_event(event)
    read: list[Event] = []
    while not read or read[-1].type != until:
        answer = await client.read_event()
        if answer is None:
            break
        read.append(answer)
    return read


def kinds(events: list[Event]) -> list[str]:
    """Types of events, those that repeat once."""
    return [kind for kind, _ in itertools.groupby(event.type for event in events)]


def sound(events: list[Event]) -> np.ndarray:
    chunks = [AudioChunk.from_event(event) for event in events if AudioChunk.is_type(event.type)]
    assert {(chunk.rate, chunk.width, chunk.channels) for chunk in chunks} <= {(22_050, 2, 1)}
    return np.frombuffer(b"".join(chunk.audio for chunk in chunks), "<i2")


def test_describe_names_both_programs_and_what_they_can(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            info = Info.from_event((await ask(client, Describe().event(), until="info"))[0])
            assert [program.supports_transcript_streaming for program in info.asr] == [True]
            assert [program.supports_synthesize_streaming for program in info.tts] == [True]
            assert info.asr[0].models[0].languages == info.tts[0].voices[0].languages == ["en", "zh"]
            assert info.tts[0].voices[0].name == VOICE
            for artifact in (info.asr[0], info.tts[0], info.asr[0].models[0], info.tts[0].voices[0]):
                assert artifact.installed
                assert artifact.attribution.name
                assert artifact.attribution.url.startswith("https://")
            pong = (await ask(client, Event("of-the-future"), Ping("a").event(), until="pong"))[0]
            assert Pong.from_event(pong).text == "a"

    serve(double, test)


@pytest.mark.parametrize(
    ("rate", "width", "channels", "dtype"),
    [(16_000, 2, 1, "<i2"), (48_000, 4, 2, "<i4"), (8_000, 2, 2, "<i2"), (22_050, 4, 1, "<i4")],
)
def test_speech_of_any_format_is_transcribed(
    double: ProtocolDouble, rate: int, width: int, channels: int, dtype: str
) -> None:
    double.spoken = "chunks 3"
    shape = {"rate": rate, "width": width, "channels": channels}
    # Half a second at a quarter of full scale.
    half = np.full((rate // 2, channels), 2 ** (8 * width - 3), dtype).tobytes()
    odd = len(half) // 3 + 1  # a chunk may end in the middle of a sample

    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            for _ in range(2):
                chunks = [AudioChunk(audio=part, **shape).event() for part in (half[:odd], half[odd:])]
                begin = [Transcribe(language="en").event(), AudioStart(**shape).event()]
                events = await ask(client, *begin, *chunks, STOP, until="transcript-stop")
                assert kinds(events) == ["transcript-start", "transcript-chunk", "transcript", "transcript-stop"]
                pieces = [TranscriptChunk.from_event(e).text for e in events if TranscriptChunk.is_type(e.type)]
                assert pieces == [chunk_text(0, index) for index in range(3)]
                assert Transcript.from_event(events[-2]).text == "".join(pieces).strip()

    serve(double, test)
    assert [inputs["TASK"] for inputs in double.inputs] == ["asr", "asr"]
    speech = double.inputs[0]["AUDIO"]
    assert len(speech) == pytest.approx(8_000, abs=2)  # type: ignore[arg-type]
    assert np.median(speech) == pytest.approx(0.25, abs=0.01)  # type: ignore[call-overload]


def test_text_is_spoken_to_the_sample(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            request = Synthesize("chunks 3", voice=SynthesizeVoice(name=VOICE)).event()
            events = await ask(client, request, until="audio-stop")
            assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop"]
            assert AudioStart.from_event(events[0]) == AudioStart(rate=22_050, width=2, channels=1)
            np.testing.assert_array_equal(sound(events), np.concatenate([chunk_pcm(0, i) for i in range(3)]))

    serve(double, test)
    assert [(inputs["TASK"], inputs["TEXT"]) for inputs in double.inputs] == [("tts", "chunks 3")]


def test_text_that_streams_in_is_spoken_by_sentences(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            pieces = [SynthesizeChunk(text).event() for text in ("chu", "nks 2\n", "\nchunks")]
            first = await ask(client, SynthesizeStart().event(), *pieces, until="audio-chunk")
            # The first sentence sounds before the second one is complete.
            assert kinds(first) == ["audio-start", "audio-chunk"]
            rest = [SynthesizeChunk(" 1").event(), Synthesize("chunks 2\n\nchunks 1").event(), SynthesizeStop().event()]
            events = first + await ask(client, *rest, until="synthesize-stopped")
            assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop", "synthesize-stopped"]
            samples, one = sound(events), len(chunk_pcm(0, 0))
            np.testing.assert_array_equal(samples[: 2 * one], np.concatenate([chunk_pcm(0, 0), chunk_pcm(0, 1)]))
            np.testing.assert_array_equal(samples[-one:], chunk_pcm(int(str(double.inputs[1]["SEED"])), 0))
            assert len(samples) < 2 * 3 * one  # a pause between them

    serve(double, test)
    assert [inputs["TEXT"] for inputs in double.inputs] == ["chunks 2", "chunks 1"]


def chunk(**changed: Any) -> Event:
    return AudioChunk(audio=bytes(320), **(SHAPE | changed)).event()


def start(**changed: Any) -> Event:
    return AudioStart(**(SHAPE | changed)).event()


WRONG = {
    "audio without start": ([SPEECH], "audio-chunk: audio-start comes first"),
    "stop without start": ([STOP], "audio-stop: audio-start comes first"),
    "start twice": ([START, START], "audio-start: audio-stop comes first"),
    "text without start": ([SynthesizeChunk("a").event()], "synthesize-chunk: synthesize-start comes first"),
    "end without start": ([SynthesizeStop().event()], "synthesize-stop: synthesize-start comes first"),
    "rate changes": ([START, chunk(rate=8_000)], "rate: 8000 is not valid: audio-start said 16000"),
    "width changes": ([START, chunk(width=4)], "width: 4 is not valid: audio-start said 2"),
    "channels change": ([START, chunk(channels=2)], "channels: 2 is not valid: audio-start said 1"),
    "no speech": ([START, STOP], "AUDIO: '0 samples' is not valid: it is empty"),
    "half a sample": ([START, AudioChunk(audio=bytes(999), **SHAPE).event(), STOP], "audio: '999 bytes' is not valid"),
    "rate": ([start(rate=0)], "rate: 0 is not valid: it is a whole number from 8000 to 192000"),
    "rate of a wrong type": ([start(rate="16000")], "rate: '16000' is not valid"),
    "width": ([start(width=3)], "width: 3 is not valid: a sample has 2 or 4 bytes"),
    "channels": ([start(channels=True)], "channels: True is not valid"),
    "no rate": ([Event("audio-start", {"width": 2, "channels": 1})], "audio-start: {'width': 2, 'channels': 1} is not"),
    "no text": ([Event("synthesize", {})], "synthesize: {} is not valid: a field is missing"),
    "text of a wrong type": ([Event("synthesize", {"text": 5})], "text: 5 is not valid: it is a string"),
    "empty text": ([Synthesize("").event()], "text: '0 characters' is not valid: it has no letter and no digit"),
    "text of marks": (
        [SynthesizeStart().event(), SynthesizeChunk("...").event(), SynthesizeStop().event()],
        "text: '3 characters' is not valid: it has no letter and no digit",
    ),
    "text twice": ([SynthesizeStart().event()] * 2, "synthesize-start: synthesize-stop comes first"),
    "data of a wrong type": ([Event("synthesize", {"text": "a", "voice": 5})], "synthesize: {'text': 'a', 'voice': 5}"),
    "voice": ([Synthesize("a", SynthesizeVoice(name="b")).event()], "voice: 'b' is not valid: there is vita alone"),
    "model": ([Transcribe(name="whisper").event()], "name: 'whisper' is not valid: there is vita-audio alone"),
    "SSML": ([Synthesize("<a/>", text_format=SynthesizeTextFormat.SSML).event()], "text_format: "),
    "too long a text": ([Synthesize("a" * 101).event()], "text: '101 characters' is not valid: at most 100 characters"),
    "too long in parts": (
        [SynthesizeStart().event(), *[SynthesizeChunk("a" * 40).event()] * 3],
        "text: '120 characters' is not valid",
    ),
    "too much speech": ([START, *[SPEECH] * 7], "audio: '3.5 s, 112000 bytes' is not valid: at most 120 s and 100000"),
    "too long a speech": (
        [start(rate=8_000), *[AudioChunk(8_000, 2, 1, bytes(96_000)).event()] * 21],
        "audio: '126.0 s, 2016000 bytes' is not valid: at most 120 s",
    ),
    "too large an event": ([Synthesize("a" * 1_000_000).event()], "event: '1000012 bytes' is not valid"),
}


@pytest.mark.parametrize(("events", "text"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_and_the_connection_closed(
    double: ProtocolDouble, events: list[Event], text: str
) -> None:
    bytes_ = 100_000 if "100000" in text else 10_000_000

    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            for event in events:
                await client.write_event(event)
            await refused(client.read_event, "invalid_request", text)
        async with client_of(server) as client:  # the next one finds all in order
            assert await ask(client, Synthesize("chunks 1").event(), until="audio-stop")

    serve(double, test, Bounds(text_chars=100, audio_bytes=bytes_, event_bytes=500_000))
    assert [inputs["TEXT"] for inputs in double.inputs] == ["chunks 1"]


async def refused(read: Callable[[], Awaitable[Event | None]], code: str, text: str) -> None:
    """The next event is an error of one line, the last one."""
    event = await read()
    assert event is not None
    assert (event.type, event.data["code"]) == ("error", code)
    assert text in event.data["text"]
    assert "\n" not in event.data["text"]
    assert await read() is None


LINES = {
    "no JSON": b"hello\n",
    "no object": b"[]\n",
    "no type": b"{}\n",
    "a type that is none": b'{"type": 5}\n',
    "data that is none": b'{"type": "synthesize", "data": 5}\n',
    "a length that is none": b'{"type": "describe", "data_length": "x"}\n',
    "a length that is no whole number": b'{"type": "describe", "payload_length": 2.5}\n' + bytes(9),
    "data that is no object": b'{"type": "describe", "data_length": 3}\n[5]',
    "data that is no JSON": b'{"type": "describe", "data_length": 2}\nab',
    "a payload without an end": b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
    "an infinite payload": b'{"type": "audio-chunk", "payload_length": Infinity}\n',
    "deep": b"[" * 60_000 + b"\n",
    "no UTF-8": b"\xff\xfe\n",
    "a line without an end": b"x" * 300_000,
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("sent", LINES.values(), ids=LINES)
def test_bytes_that_are_no_event_are_refused(double: ProtocolDouble, sent: bytes) -> None:
    async def test(server: WyomingServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        await refused(lambda: async_read_event(reader), "invalid_request", "event: ")
        writer.close()

    serve(double, test)


def test_a_client_that_has_said_all_still_gets_its_answer(double: ProtocolDouble) -> None:
    """It closes its half of the connection, as shell scripts do."""

    async def test(server: WyomingServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b'{"type": "synthesize", "data": {"text": "chunks 3 0.05"}}\n')
        writer.write_eof()
        events = []
        while (event := await async_read_event(reader)) is not None:
            events.append(event)
        assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop"]
        assert len(sound(events)) == 3 * 2_205
        writer.close()

    serve(double, test)


@pytest.mark.parametrize("sent", [b"", b'{"type": "audio-st', b'{"type": "describe", "data_length": 9}\n{"'])
def test_a_client_that_leaves_at_any_place_does_no_harm(double: ProtocolDouble, sent: bytes) -> None:
    async def test(server: WyomingServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    serve(double, test)


def test_the_stream_of_a_client_that_is_gone_is_cancelled(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            await ask(client, Synthesize("chunks 1000 0.02").event(), until="audio-chunk")
        await asyncio.to_thread(wait_until, double.cancelled.is_set)

    serve(double, test)


def test_the_stream_of_a_client_that_never_reads_is_cancelled(double: ProtocolDouble) -> None:
    """Within `send_s`, while others are served."""

    async def test(server: WyomingServer) -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.connect(("127.0.0.1", server.port))
            text = json.dumps({"type": "synthesize", "data": {"text": "chunks 20000"}})
            client.sendall(text.encode() + b"\n")
            async with client_of(server) as other:
                assert await ask(other, Synthesize("chunks 1").event(), until="audio-stop")
            await asyncio.to_thread(wait_until, double.cancelled.is_set)
            await until_alone(server)

    serve(double, test, Bounds(send_s=0.5))


async def until_alone(server: WyomingServer) -> None:
    while server._handlers:
        await asyncio.sleep(0.01)


def test_a_client_that_is_silent_is_let_go(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b'{"type": "synthesize')
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await until_alone(server)
        writer.close()

    serve(double, test, Bounds(idle_s=0.2))


def test_one_client_more_than_allowed_is_refused_at_once(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as first, client_of(server) as second:
            for client in (first, second):
                assert await ask(client, Describe().event(), until="info")
            async with client_of(server) as third:
                await refused(third.read_event, "server_full", "2 clients are connected")
            assert await ask(second, Describe().event(), until="info")

    serve(double, test, Bounds(connections=2))


@pytest.mark.parametrize(
    ("script", "before", "code"),
    [
        ("message-only [vita:server_full] server is full (8 running, 0 waiting)", [], "server_full"),
        ("fail", ["audio-start", "audio-chunk"], "engine_error"),
        ("short", ["audio-start", "audio-chunk"], "stream_broken"),
    ],
)
def test_an_error_of_the_server_is_passed_on(double: ProtocolDouble, script: str, before: list[str], code: str) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            events = await ask(client, Synthesize(script).event(), until="error")
            assert kinds(events) == [*before, "error"]
            assert events[-1].data["code"] == code
            assert double.url not in events[-1].data["text"]
            assert await client.read_event() is None

    serve(double, test)


def test_an_error_while_text_streams_in_is_said_at_the_next_piece(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            await ask(client, SynthesizeStart().event(), SynthesizeChunk("fail\n\nno").event(), until="audio-chunk")
            while True:
                await client.write_event(SynthesizeChunk(" more").event())
                with contextlib.suppress(TimeoutError):
                    event = await asyncio.wait_for(client.read_event(), 0.2)
                    assert event is not None
                    if event.type != "audio-chunk":
                        break
            assert (event.type, event.data["code"]) == ("error", "engine_error")

    serve(double, test)


def test_text_that_never_ends_is_given_up_with_its_client(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            text = SynthesizeChunk("chunks 1000 0.05\n\nand").event()
            await ask(client, SynthesizeStart().event(), text, until="audio-chunk")
        await asyncio.to_thread(wait_until, double.cancelled.is_set)
        await until_alone(server)
        assert server.gateway.running == 0

    serve(double, test)


def test_an_error_of_a_transcription_comes_instead_of_the_transcript(double: ProtocolDouble) -> None:
    double.spoken = "message-only [vita:shutting_down] server is shutting down"

    async def test(server: WyomingServer) -> None:
        async with client_of(server) as client:
            events = await ask(client, START, SPEECH, STOP, until="error")
            assert kinds(events) == ["error"]
            assert events[0].data["code"] == "shutting_down"

    serve(double, test)


def test_a_gateway_that_drains_waits_for_what_runs_and_takes_nothing_new(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        gateway = server.gateway
        async with client_of(server) as waits, client_of(server) as speaks, client_of(server) as streams:
            await ask(waits, Describe().event(), until="info")
            await ask(
                streams, SynthesizeStart().event(), SynthesizeChunk("chunks 2\n\nchunks").event(), until="audio-chunk"
            )
            await ask(speaks, Synthesize("chunks 5 0.1").event(), until="audio-chunk")
            assert gateway.running == 2
            gateway.draining.set()
            await waits.write_event(Describe().event())
            await refused(waits.read_event, "shutting_down", "the gateway is shutting down")
            assert (await ask(speaks, until="audio-stop"))[-1].type == "audio-stop"
            rest = [SynthesizeChunk(" 1").event(), SynthesizeStop().event()]
            assert (await ask(streams, *rest, until="synthesize-stopped"))[-1].type == "synthesize-stopped"
            assert gateway.running == 0

    serve(double, test)


def test_what_still_runs_is_ended_with_the_server(double: ProtocolDouble) -> None:
    async def test(server: WyomingServer) -> None:
        async with client_of(server) as waits, client_of(server) as speaks:
            await ask(waits, Describe().event(), until="info")
            await ask(speaks, Synthesize("chunks 1000 0.1").event(), until="audio-chunk")
            await server.close()
            assert await waits.read_event() is None
            await asyncio.to_thread(wait_until, double.cancelled.is_set)
            assert server.gateway.running == 0
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", server.port)

    serve(double, test)


def test_a_cancellation_is_not_lost_while_an_event_is_read() -> None:
    def begin() -> tuple[Coroutine[Any, Any, Event | None], Callable[[], None]]:
        reader = asyncio.StreamReader()
        return BoundedReader(reader, Bounds()).event(), lambda: reader.feed_data(b'{"type": "ping"}\n')

    asyncio.run(assert_never_lost(begin))
