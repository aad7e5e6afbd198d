"""The wyoming package's client against the gateway, as Home Assistant uses it."""

from __future__ import annotations

import sys

from checks import Case, WrongAnswer, blocks, check_speech, check_text, require, run
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)


def client_of(case: Case) -> AsyncClient:
    return AsyncClient.from_uri(case.wyoming, connect_timeout=10, read_timeout=30)


async def events_until(client: AsyncClient, kind: str) -> list[Event]:
    events: list[Event] = []
    while not events or events[-1].type != kind:
        event = await client.read_event()
        if event is None or Error.is_type(event.type):
            raise WrongAnswer(f"{event and event.data} before {kind}, after {[e.type for e in events]}")
        events.append(event)
    return events


async def info_of(client: AsyncClient) -> Info:
    await client.write_event(Describe().event())
    return Info.from_event((await events_until(client, "info"))[-1])


async def describe(case: Case) -> None:
    async with client_of(case) as client:
        info = await info_of(client)
        require("one program of each kind", len(info.asr) == len(info.tts) == 1)
        require("streams speech", info.tts[0].supports_synthesize_streaming)
        require("streams transcripts", info.asr[0].supports_transcript_streaming)
        for artifact in (*info.asr, *info.tts, *info.asr[0].models, *info.tts[0].voices):
            require(f"{artifact.name} is installed, with attribution", artifact.installed and artifact.attribution.url)
        require("languages", info.asr[0].models[0].languages and info.tts[0].voices[0].languages)
        await client.write_event(Ping("here").event())
        require("pong", Pong.from_event((await events_until(client, "pong"))[-1]).text == "here")


async def transcribe(case: Case) -> None:
    """At 16 kHz as Home Assistant sends it, and at the rate of the file."""
    async with client_of(case) as client:
        pcm, rate_hz = case.question_pcm()
        for _ in range(2):  # a connection may bring more than one
            await client.write_event(Transcribe(language="en").event())
            shape = {"rate": rate_hz, "width": 2, "channels": 1}
            await client.write_event(AudioStart(**shape).event())
            for block in blocks(pcm, 2048):
                await client.write_event(AudioChunk(audio=block, **shape).event())
            await client.write_event(AudioStop().event())
            events = await events_until(client, "transcript-stop")
            require("transcript-start comes first", TranscriptStart.is_type(events[0].type))
            require("transcript-stop comes last", TranscriptStop.is_type(events[-1].type))
            pieces = [TranscriptChunk.from_event(e).text for e in events if TranscriptChunk.is_type(e.type)]
            check_text("chunks", "".join(pieces), case.question)
            whole = [Transcript.from_event(event) for event in events if Transcript.is_type(event.type)]
            require("one transcript", len(whole) == 1)
            check_text("transcript", whole[0].text, case.question)


def sound_of(events: list[Event]) -> tuple[bytes, int]:
    """Samples and rate in Hz; one audio-start, then chunks of its format, then one audio-stop."""
    kinds = [event.type for event in events if event.type.startswith("audio-")]
    require(f"order of {kinds[:3]} ... {kinds[-2:]}", kinds[0] == "audio-start" and kinds[-1] == "audio-stop")
    require("start and stop once", kinds.count("audio-start") == kinds.count("audio-stop") == 1)
    start = AudioStart.from_event(events[[event.type for event in events].index("audio-start")])
    chunks = [AudioChunk.from_event(event) for event in events if AudioChunk.is_type(event.type)]
    shape = (start.rate, start.width, start.channels)
    require("one format", {(chunk.rate, chunk.width, chunk.channels) for chunk in chunks} == {shape})
    require("16 bit, mono", shape[1:] == (2, 1))
    require("one chunk is no stream", len(chunks) > 1)
    return b"".join(chunk.audio for chunk in chunks), start.rate


async def synthesize(case: Case) -> None:
    async with client_of(case) as client:
        voice = (await info_of(client)).tts[0].voices[0].name
        await client.write_event(Synthesize(text=case.sentence, voice=SynthesizeVoice(name=voice)).event())
        pcm, rate_hz = sound_of(await events_until(client, "audio-stop"))
        check_speech("sound", pcm, case.sentence_s, rate_hz)


async def synthesize_streamed(case: Case) -> None:
    """Text as a language model writes it, with the whole of it once more for old servers, as Home Assistant sends."""
    async with client_of(case) as client:
        text = f"{case.sentence} {case.sentence}"
        await client.write_event(SynthesizeStart().event())
        for start in range(0, len(text), 7):
            await client.write_event(SynthesizeChunk(text[start : start + 7]).event())
        await client.write_event(Synthesize(text=text).event())
        await client.write_event(SynthesizeStop().event())
        events = await events_until(client, "synthesize-stopped")
        require("ends with synthesize-stopped", SynthesizeStopped.is_type(events[-1].type))
        pcm, rate_hz = sound_of(events)
        check_speech("two sentences, once", pcm, 2 * case.sentence_s, rate_hz)
        # What was spoken, back into text: each second of it is at 22.05 kHz.
        await client.write_event(Transcribe().event())
        shape = {"rate": rate_hz, "width": 2, "channels": 1}
        await client.write_event(AudioStart(**shape).event())
        await client.write_event(AudioChunk(audio=pcm[: len(pcm) // 4 * 2], **shape).event())
        await client.write_event(AudioStop().event())
        heard = (await events_until(client, "transcript"))[-1]
        check_text("the first half of it", Transcript.from_event(heard).text, case.sentence)


async def errors(case: Case) -> None:
    """One line, then the connection is closed: a client that does not know the event must not wait."""
    for wrong in (AudioChunk(rate=16_000, width=2, channels=1, audio=b"\0\0").event(), Synthesize(text="").event()):
        async with client_of(case) as client:
            await client.write_event(wrong)
            event = await client.read_event()
            require(f"error after {wrong.type}", event is not None and Error.is_type(event.type))
            require("a code", Error.from_event(event).code == "invalid_request")
            require("closed", await client.read_event() is None)


if __name__ == "__main__":
    sys.exit(run(describe, transcribe, synthesize, synthesize_streamed, errors))
