"""Open WebUI itself, started with the gateway as its provider: read aloud, dictation, chat, voice call.

The calls are those that its page makes to its own server, which then calls the gateway.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from checks import Case, WrongAnswer, at_24_khz, blocks, check_speech, check_text, read_case, require, run, silence

START_S = 300
PROGRAM = Path(sys.executable).with_name("open-webui")


def settings(case: Case, folder: str) -> dict[str, str]:
    """What its documentation says to set for a provider of OpenAI's interface; the rest keeps it off the network."""
    provider = {"BASE_URL": case.api, "KEY": "none"}
    names = ("OPENAI_API", "AUDIO_TTS_OPENAI_API", "AUDIO_STT_OPENAI_API", "AUDIO_REALTIME_OPENAI_API")
    return {
        **{f"{name}_{part}": value for name in names for part, value in provider.items()},
        "AUDIO_TTS_ENGINE": "openai",
        "AUDIO_TTS_MODEL": case.model,
        "AUDIO_TTS_VOICE": "alloy",
        "AUDIO_STT_ENGINE": "openai",
        "AUDIO_STT_MODEL": case.model,
        "AUDIO_REALTIME_ENABLED": "true",
        "AUDIO_REALTIME_MODEL": case.model,
        "AUDIO_REALTIME_TRANSCRIPTION_MODEL": case.model,
        "DATA_DIR": folder,
        "WEBUI_SECRET_KEY": "0123456789abcdef" * 4,
        "ENABLE_OLLAMA_API": "false",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "RAG_EMBEDDING_ENGINE": "openai",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def served(case: Case) -> Iterator[None]:
    """Open WebUI on a free port, its address in PAGE and its first user's token in TOKEN."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+", encoding="utf-8") as log:
        command = [str(PROGRAM), "serve", "--host", "127.0.0.1", "--port", str(port)]
        environment = os.environ | settings(case, folder)
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            os.environ["PAGE"] = f"http://127.0.0.1:{port}"
            asyncio.run(sign_up(server))
            yield
        except BaseException:
            log.seek(0)
            print(log.read()[-3000:], file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait(30)


async def sign_up(server: subprocess.Popen[bytes]) -> None:
    user = {"name": "Ada", "email": "ada@example.com", "password": "analytical engine"}
    end_s = time.monotonic() + START_S
    async with aiohttp.ClientSession(os.environ["PAGE"]) as page:
        while True:
            require("Open WebUI ended", server.poll() is None)
            require(f"Open WebUI did not start within {START_S} s", time.monotonic() < end_s)
            try:
                async with page.post("/api/v1/auths/signup", json=user) as answer:
                    if answer.status == 200:
                        os.environ["TOKEN"] = (await answer.json())["token"]
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(1)


def signed_in() -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    return aiohttp.ClientSession(os.environ["PAGE"], headers=headers, raise_for_status=True)


async def lists(case: Case) -> None:
    async with signed_in() as page:
        async with page.get("/api/models") as answer:
            listed = [model["id"] for model in (await answer.json())["data"]]
            require(f"{case.model} among {listed}", case.model in listed)
        async with page.get("/api/v1/audio/models") as answer:
            listed = [model["id"] for model in (await answer.json())["models"]]
            require(f"{case.model} among {listed}", case.model in listed)
        async with page.get("/api/v1/audio/voices") as answer:
            voices = (await answer.json())["voices"]
            require(f"names and ids in {voices}", voices and all(voice["id"] and voice["name"] for voice in voices))


async def read_aloud(case: Case) -> None:
    async with signed_in() as page:
        async with page.post("/api/v1/audio/speech", json={"input": case.sentence, "voice": "alloy"}) as answer:
            mp3 = await answer.read()
        require(f"an mp3 file, not {mp3[:4]!r}", mp3.startswith((b"ID3", b"\xff")) and len(mp3) > 4000)
        check_text("what was spoken", await dictated(page, mp3, "speech.mp3", "audio/mpeg"), case.sentence)


async def dictated(page: aiohttp.ClientSession, file: bytes, name: str, kind: str) -> str:
    form = aiohttp.FormData()
    form.add_field("file", file, filename=name, content_type=kind)
    async with page.post("/api/v1/audio/transcriptions", data=form) as answer:
        return (await answer.json())["text"]


async def dictation(case: Case) -> None:
    async with signed_in() as page:
        check_text("text", await dictated(page, case.question_bytes(), "recording.wav", "audio/wav"), case.question)


async def chat(case: Case) -> None:
    asked = {"model": case.model, "messages": [{"role": "user", "content": case.typed}]}
    async with signed_in() as page:
        async with page.post("/api/chat/completions", json=asked | {"stream": False}) as answer:
            whole = (await answer.json())["choices"][0]["message"]["content"]
            check_text("answer", whole, case.typed_answer)
        async with page.post("/api/chat/completions", json=asked | {"stream": True}) as answer:
            lines = (await answer.text()).splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices")]
    check_text("stream", "".join(deltas), case.typed_answer)


async def voice_call(case: Case) -> None:
    """The server finds the end of the turn and writes it down; the page then asks for the answer."""
    pcm, rate_hz = case.question_pcm()
    heard, transcript, sound = "", "", b""
    async with signed_in() as page, page.ws_connect("/api/v1/audio/realtime") as call:
        await call.send_json({"type": "auth", "token": os.environ["TOKEN"], "model_id": case.model})
        ready = await call.receive_json()
        require(f"bridge.ready, not {ready}", ready["type"] == "bridge.ready")
        for block in blocks(at_24_khz(pcm, rate_hz) + silence(1.2, 24_000), 48_000):
            audio = base64.b64encode(block).decode()
            await call.send_json({"type": "input_audio_buffer.append", "audio": audio})
        async for message in call:
            event = message.json()
            kind = event["type"]
            if kind == "bridge.error":
                raise WrongAnswer(event["message"])
            if kind == "conversation.item.input_audio_transcription.completed":
                heard = event["transcript"]
                await call.send_json({"type": "bridge.respond", "item_id": event["item_id"]})
            elif kind == "response.output_audio_transcript.delta":
                transcript += event["delta"]
            elif kind == "response.output_audio.delta":
                sound += base64.b64decode(event["delta"])
            elif kind == "response.done":
                break
    check_text("the user's turn", heard, case.question)
    require("an answer", transcript)
    check_speech("sound", sound, len(sound) / 48_000)


if __name__ == "__main__":
    with served(read_case()):
        status = run(lists, read_aloud, dictation, chat, voice_call)
    sys.exit(status)
