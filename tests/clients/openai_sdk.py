"""The openai SDK against the gateway: speech, transcription, chat with sound in and out, realtime."""

from __future__ import annotations

import base64
import io
import json
import sys
import wave

import openai
from checks import Case, WrongAnswer, at_24_khz, blocks, check_speech, check_text, require, run, silence
from openai import AsyncOpenAI

#: What a file of each format begins with.
MAGIC = {"mp3": (b"ID3", b"\xff"), "opus": (b"OggS",), "aac": (b"\xff",), "flac": (b"fLaC",), "wav": (b"RIFF",)}


def client_of(case: Case) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="none", base_url=case.api, max_retries=0)


def pcm_of(file: bytes) -> bytes:
    """The samples of a WAV file, also of one that was streamed and states no length."""
    with wave.open(io.BytesIO(file), "rb") as sound:
        require(f"24 kHz, 16 bit, mono, not {sound.getparams()}", sound.getparams()[:3] == (1, 2, 24_000))
        return sound.readframes(len(file) // 2)


async def models(case: Case) -> None:
    async with client_of(case) as client:
        listed = [model async for model in client.models.list()]
        require(f"{case.model} among {listed}", case.model in [model.id for model in listed])
        require("another id", (await client.models.retrieve(listed[0].id)).id == listed[0].id)


async def speech(case: Case) -> None:
    async with client_of(case) as client:
        fixed = {"model": case.model, "voice": "alloy", "input": case.sentence}
        for name, magic in MAGIC.items():
            file = (await client.audio.speech.create(**fixed, response_format=name)).content
            require(f"{name}: begins with {file[:4]!r}", file.startswith(magic) and len(file) > 2000)
            if name == "wav":
                check_speech("wav", pcm_of(file), case.sentence_s)
        pcm = (await client.audio.speech.create(**fixed, response_format="pcm")).content
        check_speech("pcm", pcm, case.sentence_s)
        fast = (await client.audio.speech.create(**fixed, response_format="pcm", speed=1.5)).content
        check_speech("speed 1.5", fast, case.sentence_s / 1.5)
        heard = await client.audio.transcriptions.create(
            model=fixed["model"],
            file=("spoken.wav", (await client.audio.speech.create(**fixed, response_format="wav")).content),
        )
        check_text("what was spoken", heard.text, case.sentence)


async def speech_streamed(case: Case) -> None:
    async with client_of(case) as client:
        fixed = {"model": case.model, "voice": "marin", "input": case.sentence, "response_format": "pcm"}
        async with client.audio.speech.with_streaming_response.create(**fixed) as response:
            pieces = [piece async for piece in response.iter_bytes(4096)]
        require("one piece is no stream", len(pieces) > 3)
        check_speech("stream", b"".join(pieces), case.sentence_s)
        async with client.audio.speech.with_streaming_response.create(**fixed, stream_format="sse") as response:
            lines = [line async for line in response.iter_lines()]
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        sound = b"".join(base64.b64decode(e["audio"]) for e in events if e["type"] == "speech.audio.delta")
        check_speech("sse", sound, case.sentence_s)
        require("speech.audio.done comes last", events[-1]["type"] == "speech.audio.done" and events[-1]["usage"])


async def transcription(case: Case) -> None:
    async with client_of(case) as client:
        file = ("question.wav", case.question_bytes())
        create = client.audio.transcriptions.create
        check_text("json", (await create(model=case.model, file=file)).text, case.question)
        check_text("text", await create(model=case.model, file=file, response_format="text"), case.question)
        verbose = await create(model=case.model, file=file, response_format="verbose_json")
        check_text("verbose_json", verbose.text, case.question)
        require(f"a duration of {verbose.duration} s", 0.5 < verbose.duration < 10)
        for name in ("srt", "vtt"):
            subtitles = await create(model=case.model, file=file, response_format=name)
            require(f"{name}: {subtitles!r}", "-->" in subtitles and case.question in subtitles)
        events = [event async for event in await create(model=case.model, file=file, stream=True)]
        deltas = "".join(event.delta for event in events if event.type == "transcript.text.delta")
        check_text("deltas", deltas, case.question)
        require("transcript.text.done comes last", events[-1].type == "transcript.text.done")
        check_text("done", events[-1].text, case.question)


async def chat(case: Case) -> None:
    async with client_of(case) as client:
        messages = [{"role": "user", "content": case.typed}]
        answer = await client.chat.completions.create(model=case.model, messages=messages)
        first = answer.choices[0].message.content
        check_text("text", first, case.typed_answer)
        chunks = [
            c async for c in await client.chat.completions.create(model=case.model, messages=messages, stream=True)
        ]
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        check_text("stream", streamed, case.typed_answer)
        async with client.chat.completions.stream(model=case.model, messages=messages) as stream:
            final = await stream.get_final_completion()
        check_text("the SDK's helper", final.choices[0].message.content, case.typed_answer)
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "What is two plus two?"}]
        second = await client.chat.completions.create(model=case.model, messages=messages)
        require("a second turn", second.choices[0].message.content)


async def chat_with_sound(case: Case) -> None:
    async with client_of(case) as client:
        spoken = {"data": base64.b64encode(case.question_bytes()).decode(), "format": "wav"}
        fixed = {
            "model": case.model,
            "modalities": ["text", "audio"],
            "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": spoken}]}],
        }
        reply = await client.chat.completions.create(**fixed, audio={"voice": "alloy", "format": "wav"})
        audio = reply.choices[0].message.audio
        require("no message.audio", audio is not None)
        check_text("transcript", audio.transcript, case.answer)
        check_speech("wav", pcm_of(base64.b64decode(audio.data)), case.answer_s)
        earlier = [*fixed["messages"], {"role": "assistant", "audio": {"id": audio.id}}]
        turns = fixed | {"messages": [*earlier, *fixed["messages"]]}
        second = await client.chat.completions.create(**turns, audio={"voice": "alloy", "format": "wav"})
        require("a second turn from the id of an answer", second.choices[0].message.audio.transcript)
        require("its tokens are cached", second.usage.prompt_tokens_details.cached_tokens > 0)
        request = client.chat.completions.create(**fixed, audio={"voice": "alloy", "format": "pcm16"}, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in await request if chunk.choices]
        parts = [delta.audio for delta in deltas if delta.audio]
        check_text("stream", "".join(part.transcript or "" for part in parts), case.answer)
        check_speech("stream", b"".join(base64.b64decode(part.data or "") for part in parts), case.answer_s)


async def realtime(case: Case) -> None:
    """A typed turn, then a spoken one whose end the server finds."""
    async with client_of(case) as client, client.realtime.connect(model=case.model) as connection:
        require("session.created comes first", (await connection.recv()).type == "session.created")
        audio = {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24_000},
                "transcription": {"model": case.model},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 300},
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": "marin"},
        }
        await connection.session.update(session={"type": "realtime", "output_modalities": ["audio"], "audio": audio})
        require("session.updated", (await connection.recv()).type == "session.updated")
        content = [{"type": "input_text", "text": case.typed}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        transcript, sound, _ = await answered(connection)
        check_text("typed", transcript, case.typed_answer)
        check_speech("typed", sound, case.typed_answer_s)
        pcm, rate_hz = case.question_pcm()
        for block in blocks(at_24_khz(pcm, rate_hz) + silence(1.0, 24_000)):
            await connection.input_audio_buffer.append(audio=base64.b64encode(block).decode())
        transcript, sound, seen = await answered(connection)
        check_speech("spoken", sound, case.answer_s)
        require(f"an answer, not {transcript!r}", transcript)
        for kind in ("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"):
            require(f"{kind} among {sorted(seen)}", kind in seen)
        kind = "conversation.item.input_audio_transcription.completed"
        while kind not in seen:
            event = await connection.recv()
            seen[event.type] = event
        check_text("the user's turn", seen[kind].transcript, case.question)


async def answered(connection) -> tuple[str, bytes, dict]:  # type: ignore[no-untyped-def]
    """Events up to response.done: transcript, sound, and the last event of each type."""
    transcript, sound, seen = "", b"", {}
    async for event in connection:
        seen[event.type] = event
        if event.type == "error":
            raise WrongAnswer(event.error.message)
        if event.type == "response.output_audio_transcript.delta":
            transcript += event.delta
        elif event.type == "response.output_audio.delta":
            sound += base64.b64decode(event.delta)
        elif event.type == "response.done":
            require(f"status {event.response.status}", event.response.status == "completed")
            break
    return transcript, sound, seen


async def errors(case: Case) -> None:
    """The SDK's own classes, from the statuses."""
    async with client_of(case) as client:
        wrong = (
            client.audio.speech.create(model=case.model, voice="alloy", input=""),
            client.audio.transcriptions.create(model=case.model, file=("question.wav", b"no sound at all")),
            client.chat.completions.create(model=case.model, messages=[]),
        )
        for call in wrong:
            try:
                await call
            except openai.BadRequestError as error:
                require("a message", error.message and error.body)
            else:
                raise WrongAnswer("a wrong request was answered")
        try:
            await client.chat.completions.create(model="another", messages=[{"role": "user", "content": "Hello."}])
        except (openai.NotFoundError, openai.BadRequestError) as error:
            require(f"code {error.code}", error.code == "model_not_found")
        else:
            raise WrongAnswer("another model was answered")


if __name__ == "__main__":
    trials = (models, speech, speech_streamed, transcription, chat, chat_with_sound, realtime, errors)
    sys.exit(run(*trials))
