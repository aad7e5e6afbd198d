"""livekit-agents' plugins for OpenAI against the gateway: TTS, STT (file and stream), RealtimeModel."""

from __future__ import annotations

import asyncio
import logging
import sys

from checks import Case, WrongAnswer, blocks, check_speech, check_text, require, run, silence
from livekit import rtc
from livekit.agents import llm, stt, utils
from livekit.plugins import openai
from openai.types.realtime import AudioTranscription
from openai.types.realtime.realtime_audio_input_turn_detection import ServerVad


def question_frames(case: Case, after_s: float = 0.0) -> list[rtc.AudioFrame]:
    """The spoken question, and silence after it, in frames of 50 ms."""
    pcm, rate_hz = case.question_pcm()
    pieces = blocks(pcm + silence(after_s, rate_hz), rate_hz // 20 * 2)
    return [rtc.AudioFrame(piece, rate_hz, 1, len(piece) // 2) for piece in pieces]


def sound_of(frames: list[rtc.AudioFrame]) -> bytes:
    require("24 kHz, mono", {(frame.sample_rate, frame.num_channels) for frame in frames} == {(24_000, 1)})
    return b"".join(frame.data.tobytes() for frame in frames)


async def text_to_speech(case: Case) -> None:
    """In the formats that the plugin can decode, mp3 as its default; all asked for as SSE."""
    for name in ("mp3", "wav", "pcm", "opus", "aac", "flac"):
        tts = openai.TTS(model=case.model, voice="alloy", base_url=case.api, api_key="none", response_format=name)
        async with tts.synthesize(case.sentence) as stream:
            frames = [event.frame async for event in stream]
        check_speech(name, sound_of(frames), case.sentence_s)
        await tts.aclose()


async def speech_to_text(case: Case) -> None:
    recognizer = openai.STT(model=case.model, base_url=case.api, api_key="none")
    event = await recognizer.recognize(question_frames(case))
    check_text("transcript", event.alternatives[0].text, case.question)


async def speech_to_text_streamed(case: Case) -> None:
    """A transcription session of the realtime interface."""
    async with utils.http_context.open():
        recognizer = openai.STT(model=case.model, base_url=case.api, api_key="none", use_realtime=True, vad=None)
        stream = recognizer.stream()
        for frame in question_frames(case, after_s=1.5):
            stream.push_frame(frame)
        async for event in stream:
            if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
                check_text("transcript", event.alternatives[0].text, case.question)
                break
        await stream.aclose()
        await recognizer.aclose()


class Talk:
    """A session of RealtimeModel, and what it reports."""

    def __init__(self, case: Case) -> None:
        self._model = openai.realtime.RealtimeModel(
            model=case.model,
            voice="marin",
            base_url=case.api,
            api_key="none",
            input_audio_transcription=AudioTranscription(model=case.model),
            turn_detection=ServerVad(type="server_vad", silence_duration_ms=300),
        )
        self.session = self._model.session()
        self.errors: list[object] = []
        self.transcripts: asyncio.Queue[llm.InputTranscriptionCompleted] = asyncio.Queue()
        self.answers: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
        self.interrupted = asyncio.Event()
        self.session.on("error", lambda event: self.errors.append(event.error))
        self.session.on("generation_created", self.answers.put_nowait)
        self.session.on("input_speech_started", lambda _: self.interrupted.set())
        self.session.on("input_audio_transcription_completed", self.transcripts.put_nowait)

    async def speak(self, frames: list[rtc.AudioFrame]) -> None:
        """As fast as a person does."""
        for frame in frames:
            self.session.push_audio(frame)
            await asyncio.sleep(frame.duration)

    async def __aenter__(self) -> Talk:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.aclose()
        await self._model.aclose()
        require(f"no error: {self.errors}", not self.errors)


async def read(answer: llm.GenerationCreatedEvent) -> tuple[str, bytes, str]:
    """Text, sound and the item's id of a whole answer."""
    async for message in answer.message_stream:

        async def text_of(message: llm.MessageGeneration = message) -> str:
            return "".join([str(piece) async for piece in message.text_stream])

        async def frames_of(message: llm.MessageGeneration = message) -> list[rtc.AudioFrame]:
            return [frame async for frame in message.audio_stream]

        text, frames = await asyncio.gather(text_of(), frames_of())
        return text, sound_of(frames), message.message_id
    raise WrongAnswer("an answer without a message")


async def realtime_typed(case: Case) -> None:
    async with Talk(case) as talk:
        context = llm.ChatContext.empty()
        context.add_message(role="user", content=case.typed)
        await talk.session.update_chat_ctx(context)
        text, sound, _ = await read(await talk.session.generate_reply())
        check_text("answer", text, case.typed_answer)
        check_speech("sound", sound, case.typed_answer_s)
        await talk.session.update_instructions("You are Ada.")


async def realtime_spoken(case: Case) -> None:
    """Two turns: the server finds the end of each."""
    async with Talk(case) as talk:
        for turn in range(2):
            for frame in question_frames(case, after_s=1.0):
                talk.session.push_audio(frame)
            text, sound, _ = await read(await talk.answers.get())
            if turn == 0:
                check_text("answer", text, case.answer)
                check_speech("sound", sound, case.answer_s)
            require("an answer", text)
            while not (heard := await talk.transcripts.get()).is_final:
                pass
            check_text("the user's turn", heard.transcript, case.question)


async def realtime_interrupted(case: Case) -> None:
    """Speech during an answer ends it; what was not heard of it is taken back; the new turn is answered."""
    async with Talk(case) as talk:
        context = llm.ChatContext.empty()
        context.add_message(role="user", content=case.typed)
        await talk.session.update_chat_ctx(context)
        first = await talk.session.generate_reply()
        async for message in first.message_stream:
            async for _ in message.audio_stream:
                break
            speaking = asyncio.create_task(talk.speak(question_frames(case, after_s=1.0)))
            await talk.interrupted.wait()
            talk.session.interrupt()
            talk.session.truncate(message_id=message.message_id, modalities=["text", "audio"], audio_end_ms=100)
            break
        await speaking
        await talk.answers.get()  # the first one is reported too
        text, sound, _ = await read(await talk.answers.get())
        require("an answer to the second turn", text and sound)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    trials = (text_to_speech, speech_to_text, speech_to_text_streamed)
    sys.exit(run(*trials, realtime_typed, realtime_spoken, realtime_interrupted))
