"""What every client's script needs: the addresses it is given, what gRPC answered, and checks of text and sound.

Standard library alone: a script runs in its client's own virtual environment, where nothing of this repository is.
"""

from __future__ import annotations

import array
import asyncio
import io
import json
import math
import re
import sys
import wave
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

RATE_HZ = 24_000
#: Of full scale (int16). Speech of the small checkpoint has 0.07 to 0.2, silence and clicks less.
MIN_LEVEL = 0.01


class WrongAnswer(Exception):
    """What came through the gateway is not what gRPC gives."""


@dataclass(frozen=True)
class Case:
    """Where the gateway is, what is sent, and what gRPC answers to it.

    Attributes:
        gateway: `http://host:port`. `wyoming`: `tcp://host:port`. `model`: its id.
        question_file: a spoken question (WAV); `question`: its words; `answer`: to it, `answer_s` seconds long.
        typed: a question; `typed_answer`: to it, `typed_answer_s` seconds long.
        sentence: to be spoken, for `sentence_s` seconds.
    """

    gateway: str
    wyoming: str
    model: str
    question_file: str
    question: str
    answer: str
    answer_s: float
    typed: str
    typed_answer: str
    typed_answer_s: float
    sentence: str
    sentence_s: float

    @property
    def api(self) -> str:
        """The base URL that clients of OpenAI's interface are given."""
        return f"{self.gateway}/v1"

    def question_bytes(self) -> bytes:
        with open(self.question_file, "rb") as file:
            return file.read()

    def question_pcm(self) -> tuple[bytes, int]:
        """int16, mono, and its rate in Hz."""
        with wave.open(self.question_file, "rb") as sound:
            assert (sound.getsampwidth(), sound.getnchannels()) == (2, 1)
            return sound.readframes(sound.getnframes()), sound.getframerate()


def words(text: str) -> list[str]:
    """Its words, without case and punctuation."""
    return re.findall(r"[\w']+", text.lower())


def check_text(what: str, got: str, expected: str) -> None:
    """Raises: WrongAnswer: it is empty, or has other words."""
    if not words(got) or words(got) != words(expected):
        raise WrongAnswer(f"{what}: {got!r}, where gRPC gives {expected!r}")


def check_speech(what: str, pcm: bytes, seconds: float, rate_hz: int = RATE_HZ) -> None:
    """int16, mono: about so long (at least 60 %, at most 170 %), neither silent nor at full scale throughout.

    Raises: WrongAnswer
    """
    samples = array.array("h")
    samples.frombytes(pcm[: len(pcm) // 2 * 2])
    if len(pcm) % 2:
        raise WrongAnswer(f"{what}: {len(pcm)} bytes are no whole number of samples")
    got_s = len(samples) / rate_hz
    if not 0.6 * seconds <= got_s <= 1.7 * seconds:
        raise WrongAnswer(f"{what}: {got_s:.2f} s of sound, where gRPC gives {seconds:.2f} s")
    level = math.sqrt(sum(sample * sample for sample in samples) / len(samples)) / 32_768
    if not MIN_LEVEL <= level <= 0.5:
        raise WrongAnswer(f"{what}: a level of {level:.4f} of full scale is no speech")


def wav(pcm: bytes, rate_hz: int = RATE_HZ) -> bytes:
    """int16, mono, as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setparams((1, 2, rate_hz, 0, "NONE", ""))
        sound.writeframes(pcm)
    return buffer.getvalue()


def silence(seconds: float, rate_hz: int) -> bytes:
    return bytes(2 * round(seconds * rate_hz))


def at_24_khz(pcm: bytes, rate_hz: int) -> bytes:
    """By linear interpolation, which is enough for a recognizer."""
    samples = memoryview(pcm).cast("h")
    out = bytearray()
    for index in range(len(samples) * 24_000 // rate_hz - 1):
        place, rest = divmod(index * rate_hz, 24_000)
        after = samples[min(place + 1, len(samples) - 1)]
        out += round(samples[place] + (after - samples[place]) * rest / 24_000).to_bytes(2, "little", signed=True)
    return bytes(out)


def blocks(pcm: bytes, size: int = 4800) -> list[bytes]:
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]


def require(what: str, holds: object) -> None:
    """Raises: WrongAnswer"""
    if not holds:
        raise WrongAnswer(what)


def read_case() -> Case:
    """The script's first argument is the file of the case, as JSON."""
    with open(sys.argv[1], encoding="utf-8") as file:
        return Case(**json.load(file))


def run(*trials: Callable[[Case], Coroutine[Any, Any, None]], limit_s: float = 60.0) -> int:
    """Run what a client tries, one after the other, each within a limit; a line for each. The exit status is 1 if one
    of them failed. More arguments of the script are the names of those to run.
    """
    case, failed = read_case(), False
    with asyncio.Runner() as runner:  # one loop: what a client has not closed is closed in it later
        for trial in trials:
            name = trial.__name__
            if len(sys.argv) > 2 and name not in sys.argv[2:]:
                continue
            try:
                runner.run(asyncio.wait_for(trial(case), limit_s))
            except Exception as error:  # noqa: BLE001  a client raises what it likes; all of it is a failure
                failed = True
                print(f"FAILED {name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}", flush=True)
            else:
                print(f"ok     {name}", flush=True)
    return int(failed)
