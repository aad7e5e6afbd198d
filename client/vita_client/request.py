"""One request, checked before it is sent, with the limits of the public contract."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypedDict

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import DEFAULT_TASK, MAX_TEMPERATURE, MAX_TOP_K, TASKS
from vita_audio.contract.limits import MAX_REPETITION_PENALTY
from vita_audio.contract.modes import parse_mode
from vita_client.audio import AudioSource, load_speech, source_name

_INT32_MAX = 2**31 - 1
_UINT64_MAX = 2**64 - 1
#: Tasks that take only one of TEXT and AUDIO; chat takes either, or both.
_TEXT_TASKS, _AUDIO_TASKS = ("tts", "text"), ("asr",)


class RequestFields(TypedDict, total=False):
    """The keyword arguments of `stream()` and `collect()`; see `build_request`."""

    audio: AudioSource | None
    sample_rate: int | None
    task: str
    mode: str | None
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None


if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A checked request; None means "the server's default". `speech` is float32 [samples], mono, 16 kHz.

    It may be sent many times: a load test builds it once.
    """

    text: str | None
    speech: NDArray[np.float32] | None
    task: str
    mode: str | None
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None


def build_request(text: str | None = None, **fields: Unpack[RequestFields]) -> Request:
    """Check the fields of a request and load its speech.

    Args:
        text: what to say, ask or answer to. "chat" takes text, audio or both; "tts" and "text" take
            text only, "asr" takes audio only.
        fields: `audio` (path, binary file or array, see `audio.load_speech`), `sample_rate` (of an array, in Hz),
            `task` (chat, tts, asr, text), `mode` (vanilla, balance, boost, turbo or "1,10,4,10"), `max_tokens`,
            `temperature` (0 = greedy), `top_k` (0 = off), `top_p` (1 = off), `repetition_penalty` (1 = off), `seed`.

    Raises:
        InvalidRequest: names the field, its value and the limit.
    """
    unknown = sorted(set(fields) - set(RequestFields.__annotations__))
    if unknown:
        raise TypeError(f"unknown request fields: {', '.join(unknown)}")
    audio, task = fields.get("audio"), fields.get("task", DEFAULT_TASK)
    if task not in TASKS:
        raise InvalidRequest("TASK", task, f"it is one of {', '.join(TASKS)}")
    if text is None and audio is None:
        raise InvalidRequest("TEXT", None, "a request has TEXT or AUDIO", "give one of them")
    if text is None and task in _TEXT_TASKS:
        raise InvalidRequest("TEXT", None, f"task {task} needs it")
    if audio is None and task in _AUDIO_TASKS:
        raise InvalidRequest("AUDIO", None, f"task {task} needs it")
    if text is not None and task in _AUDIO_TASKS:
        raise InvalidRequest("TEXT", text, f"task {task} takes AUDIO only", "leave it out, or choose task chat")
    if audio is not None and task in _TEXT_TASKS:
        raise InvalidRequest("AUDIO", source_name(audio), f"task {task} takes TEXT only", "leave it out")
    if text is not None:
        _check_text(text)
    if audio is None and fields.get("sample_rate") is not None:
        raise InvalidRequest("SAMPLE_RATE", fields["sample_rate"], "it belongs to AUDIO, which is missing")
    mode = fields.get("mode")
    return Request(
        text=text,
        task=task,
        mode=None if mode is None else parse_mode(mode).name,
        max_tokens=_whole("MAX_TOKENS", fields.get("max_tokens"), 1, _INT32_MAX),
        temperature=_number("TEMPERATURE", fields.get("temperature"), 0.0, MAX_TEMPERATURE),
        top_k=_whole("TOP_K", fields.get("top_k"), 0, MAX_TOP_K),
        top_p=_number("TOP_P", fields.get("top_p"), 0.0, 1.0, above=True),
        repetition_penalty=_number(
            "REPETITION_PENALTY", fields.get("repetition_penalty"), 0.0, MAX_REPETITION_PENALTY, above=True
        ),
        seed=_whole("SEED", fields.get("seed"), 0, _UINT64_MAX),
        speech=None if audio is None else load_speech(audio, fields.get("sample_rate")),
    )


def check_timeout(timeout_s: float) -> float:
    """A deadline in seconds; there is no "for ever".

    Raises:
        InvalidRequest: field timeout_s.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= 86_400:
        raise InvalidRequest("timeout_s", timeout_s, "it is above 0 and at most 86400 seconds")
    return float(timeout_s)


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise InvalidRequest("TEXT", text, "it is a string")
    if not text.strip():
        raise InvalidRequest("TEXT", text, "it is empty", "write at least one word")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest("TEXT", text, f"character {error.start} is not valid Unicode", "send UTF-8") from error


def _whole(field: str, value: SupportsIndex | None, low: int, high: int) -> int | None:
    if value is None:
        return None
    limit = f"it is a whole number from {low} to {high}"
    if isinstance(value, bool):
        raise InvalidRequest(field, value, limit)
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidRequest(field, value, limit) from error
    if not low <= number <= high:
        raise InvalidRequest(field, value, limit)
    return number


def _number(field: str, value: Any, low: float, high: float, above: bool = False) -> float | None:
    """`above`: the lower bound itself is not allowed."""
    if value is None:
        return None
    limit = f"it is {'above' if above else 'from'} {low:g} {'and at most' if above else 'to'} {high:g}"
    if isinstance(value, (bool, str)) or not isinstance(value, SupportsFloat):
        raise InvalidRequest(field, value, limit)
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high or (above and number == low):
        raise InvalidRequest(field, value, limit)
    return number
