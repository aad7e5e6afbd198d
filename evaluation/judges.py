"""Judges of spoken output: what turns an answer's sound into words, so that it can be scored.

`--judge pocketsphinx` (offline, English only), the base address of an OpenAI-style transcription endpoint
(`http://host/v1`), or a command with `{}` for the sound file, which prints the words.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import httpx
import soundfile

from evaluation.asr_evaluators import AsrEvaluator, general_evaluator
from evaluation.errors import EvaluationError

POCKETSPHINX = "pocketsphinx"
#: Environment variable with the key of a transcription endpoint.
API_KEY = "EVALUATION_JUDGE_API_KEY"
_TIMEOUT_S = 300.0
_TRIES = 5
#: Statuses of HTTP after which asking again may help.
_BUSY = (408, 409, 429, 500, 502, 503, 504)


class Judge(Protocol):
    """`name` says which judge, model and version; it belongs into the report."""

    name: str

    def transcribe(self, sounds: Sequence[Path], language: str) -> Iterator[str]:
        """Words of each sound file, in order, as they come.

        Raises:
            EvaluationError: the judge is not there, or does not know the language.
        """
        ...


def make_judge(option: str, model: str, at_once: int) -> Judge:
    """The judge of `--judge`; `model` is asked for at an endpoint, `at_once` sounds are judged at a time.

    Raises:
        EvaluationError: the option is none of the three.
    """
    if option == POCKETSPHINX:
        return Pocketsphinx(at_once)
    if option.startswith(("http://", "https://")):
        return Endpoint(option, model, at_once)
    if "{}" in option:
        return Command(option, at_once)
    raise EvaluationError(
        f"--judge {option!r} is not valid: it is {POCKETSPHINX}, http://HOST/v1, or a command with {{}} for the file"
    )


class Pocketsphinx:
    """The recogniser that needs no network. Weak: its error rates compare runs, not systems."""

    def __init__(self, at_once: int) -> None:
        general_evaluator()  # says at once that it is missing
        self.name = f"pocketsphinx {version('pocketsphinx')}, its general English model"
        self._at_once = at_once

    def transcribe(self, sounds: Sequence[Path], language: str) -> Iterator[str]:
        if language != "en":
            raise EvaluationError(f"--judge {POCKETSPHINX} knows English only: give a judge of {language!r} speech")
        return _map(ProcessPoolExecutor(self._at_once, initializer=_open_general), _transcribe_general, sounds)


class Endpoint:
    """`POST {url}/audio/transcriptions` as OpenAI defines it; the gateway of this project is one too."""

    def __init__(self, url: str, model: str, at_once: int) -> None:
        try:
            self.name = f"{model} at {httpx.URL(url).copy_with(userinfo=b'')}"
        except httpx.InvalidURL as error:
            raise EvaluationError(f"--judge {url!r} is not an address: {error}") from error
        self._url, self._model, self._at_once = url.rstrip("/") + "/audio/transcriptions", model, at_once
        key = os.environ.get(API_KEY)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def transcribe(self, sounds: Sequence[Path], language: str) -> Iterator[str]:
        with httpx.Client(timeout=_TIMEOUT_S, headers=self._headers) as client:
            yield from _map(ThreadPoolExecutor(self._at_once), lambda sound: self._ask(client, sound, language), sounds)

    def _ask(self, client: httpx.Client, sound: Path, language: str) -> str:
        fields = {"model": self._model, "language": language, "response_format": "json"}
        why = ""
        for number in range(_TRIES):
            time.sleep(0.5 * (2**number - 1))
            try:
                answer = client.post(self._url, data=fields, files={"file": (sound.name, sound.read_bytes())})
                if answer.status_code not in _BUSY:
                    return str(answer.raise_for_status().json()["text"])
                why = f"HTTP {answer.status_code}"
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
                why = f"HTTP {answer.status_code}: {' '.join(answer.text.split())[:200]}"
                raise EvaluationError(f"the judge {self.name} gave no transcript: {why}") from error
        raise EvaluationError(f"the judge {self.name} does not answer ({why}); what it has judged is kept: try again")


class Command:
    """A command that is run for each sound, without a shell."""

    def __init__(self, command: str, at_once: int) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise EvaluationError(f"--judge {command!r} is not valid: {error}") from error
        self.name, self._at_once = f"command {command}", at_once

    def transcribe(self, sounds: Sequence[Path], language: str) -> Iterator[str]:
        return _map(ThreadPoolExecutor(self._at_once), self._ask, sounds)

    def _ask(self, sound: Path) -> str:
        words = [word.replace("{}", str(sound)) for word in self._words]
        try:
            ran = subprocess.run(
                words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EvaluationError(f"the judge {self._words[0]} did not run: {error}") from error
        if ran.returncode:
            why = " ".join(ran.stderr.split())[-200:]
            raise EvaluationError(f"the judge {self._words[0]} ended with status {ran.returncode}: {why}")
        return " ".join(ran.stdout.split())


def _map(pool: Executor, judge: Callable[[Path], str], sounds: Sequence[Path]) -> Iterator[str]:
    """In order; what has not begun is dropped when one fails or the caller leaves."""
    try:
        yield from pool.map(judge, sounds)
    except BrokenExecutor as error:
        raise EvaluationError("a process of the judge was killed; what it has judged is kept: try again") from error
    except soundfile.SoundFileError as error:
        raise EvaluationError(f"{error}; delete this file and run the same command again") from error
    finally:
        pool.shutdown(cancel_futures=True)


_general: list[AsrEvaluator] = []  # of one pool process


def _open_general() -> None:
    _general.append(general_evaluator())


def _transcribe_general(sound: Path) -> str:
    wave, rate_hz = soundfile.read(sound, dtype="float32")
    return _general[0].transcribe(wave, rate_hz)
