"""Wyoming over TCP, the protocol of Home Assistant: describe, transcribe, synthesize (also as text streams in).

There are no keys in this protocol: who reaches the port may use it. After an error the connection is closed, since
clients that do not know the event would wait for an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from importlib.metadata import version
from typing import Any

import anyio
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncTcpServer
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeTextFormat,
)

from gateway.access import Caller
from gateway.context import Gateway
from gateway.errors import GatewayError, body_of
from gateway.keys import Key
from gateway.wyoming_input import BoundedReader, Bounds, Speech, Text, parsed
from vita_audio.contract.errors import InvalidRequest, VitaError
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_client import Pcm, TextDelta
from vita_client.request import build_request

NAME, VOICE = "vita-audio", "vita"
#: Of the released checkpoints. The small one knows English words only.
LANGUAGES = ["en", "zh"]
CALLER = Caller(Key("wyoming"), "wyoming")
_LINGER_S = 1.0
_SOUND: dict[str, Any] = {"rate": OUTPUT_SAMPLE_RATE_HZ, "width": 2, "channels": 1}

log = logging.getLogger(__name__)


def info() -> Info:
    """What `describe` is answered with."""
    artifact: dict[str, Any] = {
        "attribution": Attribution(name="VITA-MLLM", url="https://github.com/VITA-MLLM/VITA-Audio"),
        "installed": True,
        "description": "VITA-Audio on Triton Inference Server",
        "version": version("vita-audio-triton"),
    }
    model = AsrModel(name=NAME, languages=LANGUAGES, **artifact)
    voice = TtsVoice(name=VOICE, languages=LANGUAGES, **artifact)
    return Info(
        asr=[AsrProgram(name=NAME, models=[model], supports_transcript_streaming=True, **artifact)],
        tts=[TtsProgram(name=NAME, voices=[voice], supports_synthesize_streaming=True, **artifact)],
    )


class WyomingServer(AsyncTcpServer):
    """Listens, and has a `Connection` for each client: `await listen()`, and at the end `await close()`."""

    def __init__(self, gateway: Gateway, host: str, port: int, bounds: Bounds | None = None) -> None:
        super().__init__(host, port)
        self.gateway, self.bounds = gateway, bounds or Bounds()

    async def listen(self) -> int:
        """Begin to take clients. The port, which is another than that asked for where that is 0."""
        await self.start(lambda reader, writer: Connection(self, reader, writer))
        assert isinstance(self._server, asyncio.Server)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    @property
    def full(self) -> bool:
        return len(self._handlers) > self.bounds.connections

    async def close(self) -> None:
        """Take no more clients and end those that are left: running answers had the time of the gateway's drain."""
        if self._server is not None:
            self._server.close()
        if tasks := tuple(self._handlers):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


class Connection(AsyncEventHandler):
    """One client. Requests come one after the other; while one is answered nothing else is read, but the text of it."""

    def __init__(self, server: WyomingServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._server, self._gateway, self._bounds = server, server.gateway, server.bounds
        self._events = BoundedReader(reader, server.bounds)
        self._speech: Speech | None = None
        #: The text of synthesize-start and what follows it, and the task that speaks it.
        self._text: Text | None = None
        self._speaking: asyncio.Task[None] | None = None
        #: When the request that is being answered began, on `time.monotonic`; None between requests.
        self._began_s: float | None = None

    async def run(self) -> None:
        try:
            if self._server.full:
                limit = f"{self._bounds.connections} clients are connected, and no more are taken; try again later"
                raise GatewayError(limit, code="server_full")
            while (event := await self._events.event()) is not None:
                self._begin()
                await self.handle_event(event)
                if self._speech is None and self._text is None:
                    self._end("ok")
        except VitaError as error:
            self._end(error.code)
            await self._refuse(body_of(error)["error"]["message"], error.code)
        except (TimeoutError, ConnectionError):  # the client is gone, or sends or reads nothing any more
            self.writer.transport.abort()
        except Exception:
            log.exception("a Wyoming connection failed")
            await self._refuse("internal error of the gateway; its log says more", VitaError.default_code)
        finally:
            self._end("ended")
            if self._speaking is not None:
                self._speaking.cancel()
                await asyncio.wait((self._speaking,))
            # Without waiting for a client that does not read.
            asyncio.get_running_loop().call_later(self._bounds.send_s, self.writer.transport.abort)
            self.writer.close()

    def _begin(self) -> None:
        """A request begins, or goes on. A gateway that drains waits for those that run."""
        if self._began_s is None:
            if self._gateway.draining.is_set():
                raise GatewayError("the gateway is shutting down; try again later", code="shutting_down")
            self._began_s = time.monotonic()
            self._gateway.running += 1

    def _end(self, status: str) -> None:
        """The request is over, if one runs."""
        if self._began_s is not None:
            ms, self._began_s = round(1e3 * (time.monotonic() - self._began_s), 1), None
            self._gateway.running -= 1
            log.info("request", extra={"route": CALLER.route, "status": status, "ms": ms})

    async def _refuse(self, text: str, code: str) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            await self.write_event(Error(text, code).event())
            self.writer.write_eof()
            # A connection that is closed while there is something to read is reset, and the error lost.
            with anyio.move_on_after(_LINGER_S):
                await self._skip()

    async def _skip(self) -> None:
        while await self.reader.read(1 << 16):
            pass

    async def write_event(self, event: Event) -> None:
        """Raises: TimeoutError: the client has not read for `send_s`."""
        with anyio.fail_after(self._bounds.send_s):
            await super().write_event(event)

    async def handle_event(self, event: Event) -> bool:
        """Events that are not for a server of speech are skipped, as the protocol asks."""
        kind = event.type
        if Describe.is_type(kind):
            await self.write_event(info().event())
        elif Ping.is_type(kind):
            await self.write_event(Pong(parsed(Ping, event).text).event())
        elif Transcribe.is_type(kind):
            self._named("name", parsed(Transcribe, event).name, NAME)
        elif AudioStart.is_type(kind):
            if self._speech is not None:
                raise _out_of_order(kind, "audio-stop")
            self._speech = Speech(parsed(AudioStart, event), self._bounds)
        elif AudioChunk.is_type(kind):
            self._begun(kind).add(parsed(AudioChunk, event))
        elif AudioStop.is_type(kind):
            speech, self._speech = self._begun(kind), None
            await self._transcribe(speech)
        elif Synthesize.is_type(kind):
            await self._synthesize(parsed(Synthesize, event))
        elif SynthesizeStart.is_type(kind):
            if self._text is not None:
                raise _out_of_order(kind, "synthesize-stop")
            self._asked(parsed(SynthesizeStart, event))
            self._text = Text(self._bounds)
            self._speaking = asyncio.create_task(self._speak(self._text))
        elif SynthesizeChunk.is_type(kind):
            text, speaking = self._streaming(kind)
            text.add(parsed(SynthesizeChunk, event).text)
            if speaking.done():
                await speaking  # it has failed
        elif SynthesizeStop.is_type(kind):
            text, speaking = self._streaming(kind)
            text.finish()
            await speaking
            self._text = self._speaking = None
            await self.write_event(SynthesizeStopped().event())
        return True

    @staticmethod
    def _named(field: str, asked: object, name: str) -> None:
        if asked not in (None, "", name):
            raise InvalidRequest(field, asked, f"there is {name} alone", "leave it out, or see describe")

    def _begun(self, kind: str) -> Speech:
        if self._speech is None:
            raise _out_of_order(kind, "audio-start")
        return self._speech

    def _streaming(self, kind: str) -> tuple[Text, asyncio.Task[None]]:
        if self._text is None or self._speaking is None:
            raise _out_of_order(kind, "synthesize-start")
        return self._text, self._speaking

    def _asked(self, request: Synthesize | SynthesizeStart) -> None:
        self._named("voice", request.voice and request.voice.name, VOICE)
        if request.text_format not in (None, SynthesizeTextFormat.TEXT):
            raise InvalidRequest("text_format", request.text_format, "it is text", "send the words alone")

    async def _transcribe(self, speech: Speech) -> None:
        samples, rate_hz = speech.samples()
        request = await asyncio.to_thread(build_request, audio=samples, sample_rate=rate_hz, task="asr")
        pieces: list[str] = []
        timeout_s = self._gateway.settings.request_timeout_s
        async with (
            self._gateway.access.stream(CALLER),
            self._gateway.upstreams.client() as client,
            client.send(request, timeout_s=timeout_s) as stream,
        ):
            async for event in stream:
                if isinstance(event, TextDelta):
                    if not pieces:
                        await self.write_event(TranscriptStart().event())
                    pieces.append(event.text)
                    await self.write_event(TranscriptChunk(event.text).event())
        if not pieces:
            await self.write_event(TranscriptStart().event())
        await self.write_event(Transcript("".join(pieces).strip()).event())
        await self.write_event(TranscriptStop().event())

    async def _synthesize(self, request: Synthesize) -> None:
        if self._text is not None:
            return  # all of a streamed text once more, for servers that cannot stream
        self._asked(request)
        text = Text(self._bounds)
        text.add(request.text)
        text.finish()
        await self._speak(text)

    async def _speak(self, text: Text) -> None:
        """Sentence by sentence, between one audio-start and one audio-stop."""
        gateway, sounding = self._gateway, False
        async with (
            gateway.access.stream(CALLER) as use,
            gateway.upstreams.client() as client,
            client.read(text, timeout_s=gateway.settings.request_timeout_s) as reading,
        ):
            async for event in reading:
                if isinstance(event, Pcm) and len(event.samples):
                    if not sounding:
                        sounding = True
                        await self.write_event(AudioStart(**_SOUND).event())
                    use.sound(event.seconds)
                    pcm = event.samples.astype("<i2").tobytes()
                    await self.write_event(AudioChunk(audio=pcm, **_SOUND).event())
        if not sounding:
            await self.write_event(AudioStart(**_SOUND).event())
        await self.write_event(AudioStop().event())


def _out_of_order(kind: str, first: str) -> GatewayError:
    return GatewayError(f"{kind}: {first} comes first", code=InvalidRequest.default_code, field=kind)
