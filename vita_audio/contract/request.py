"""From the raw inputs of the public contract to a checked request; every bad input gets one clear InvalidRequest."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract import fields as contract
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import (
    MAX_AUDIO_PEAK,
    MAX_REPETITION_PENALTY,
    MAX_SAMPLE_RATE_HZ,
    MIN_AUDIO_SECONDS,
    MIN_SAMPLE_RATE_HZ,
    Limits,
)
from vita_audio.contract.messages import GenerationSettings
from vita_audio.contract.modes import parse_mode
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

TTS_TEMPERATURE, TTS_TOP_K = 1.0, 50

_DTYPES: dict[str, type[np.generic]] = {
    "FP32": np.float32,
    "INT32": np.int32,
    "INT16": np.int16,
    "UINT64": np.uint64,
    "STRING": np.object_,
}
_SPECS = {spec.name: spec for spec in contract.INPUTS}


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A checked request. `audio` is float32 mono [samples] at `sample_rate_hz`, or None."""

    settings: GenerationSettings
    text: str | None
    audio: NDArray[np.float32] | None
    sample_rate_hz: int

    @property
    def task(self) -> str:
        return self.settings.task


def parse_request(inputs: Mapping[str, Any], limits: Limits) -> SpeechRequest:
    """Check the inputs of one request and fill in the defaults of its task.

    Args:
        inputs: public input name -> numpy array as Triton delivers it, or a Python value, or None when it was not sent.
        limits: what the engines can serve.

    Raises:
        InvalidRequest: naming the first field that is wrong.
    """
    unknown = sorted(set(inputs) - set(_SPECS))
    if unknown:
        raise InvalidRequest(unknown[0], inputs[unknown[0]], f"inputs are {', '.join(_SPECS)}", "leave it out")

    task = _choice(inputs, "TASK", contract.TASKS, contract.DEFAULT_TASK)
    text = _text(inputs, limits)
    sample_rate_hz = _integer(
        inputs,
        "SAMPLE_RATE",
        INPUT_SAMPLE_RATE_HZ,
        MIN_SAMPLE_RATE_HZ,
        MAX_SAMPLE_RATE_HZ,
        "send the rate of AUDIO in Hz",
    )
    audio = _audio(inputs, sample_rate_hz, limits)
    _check_task_inputs(task, text, audio)

    mode_text = _string(inputs, "MODE")
    mode = limits.default_mode(task) if mode_text is None else parse_mode(mode_text, limits.mctp_modules)
    sampled = task == "tts" and limits.tts_samples
    seed = _integer(inputs, "SEED", None, 0, 2**64 - 1)
    settings = GenerationSettings(
        task=task,
        mode=mode.name,
        pattern=mode.pattern,
        max_tokens=_integer(inputs, "MAX_TOKENS", limits.default_max_tokens, 1, limits.max_tokens),
        temperature=_number(
            inputs, "TEMPERATURE", TTS_TEMPERATURE if sampled else 0.0, 0.0, contract.MAX_TEMPERATURE, "0 is greedy"
        ),
        top_k=_integer(inputs, "TOP_K", TTS_TOP_K if sampled else 0, 0, contract.MAX_TOP_K, "0 switches it off"),
        top_p=_number(inputs, "TOP_P", 1.0, 0.0, 1.0, "1 switches it off", low_excluded=True),
        repetition_penalty=_number(
            inputs,
            "REPETITION_PENALTY",
            limits.repetition_penalty,
            0.0,
            MAX_REPETITION_PENALTY,
            "1 switches it off",
            low_excluded=True,
        ),
        # A drawn seed is reported in every STATUS; 32 bits are short enough to type again.
        seed=secrets.randbits(32) if seed is None else seed,
    )
    return SpeechRequest(settings=settings, text=text, audio=audio, sample_rate_hz=sample_rate_hz)


def check_prompt(prompt_ids: Sequence[int], limits: Limits, field: str = "TEXT") -> None:
    """Check that a prompt leaves room for at least one token.

    Raises:
        InvalidRequest: naming `field` (the input that made the prompt long), its tokens and the limit.
    """
    room = limits.context_tokens - 1
    if len(prompt_ids) > room:
        raise InvalidRequest(
            field,
            f"a prompt of {len(prompt_ids)} tokens",
            f"at most {room} tokens fit into the context of {limits.context_tokens}",
            "send less text or a shorter recording",
        )


def _check_task_inputs(task: str, text: str | None, audio: NDArray[np.float32] | None) -> None:
    """Which of TEXT and AUDIO each task takes."""
    if text is None and audio is None and task == "chat":
        raise InvalidRequest("TEXT", None, "neither TEXT nor AUDIO was sent", "send one of them, or both")
    if text is None and task in ("tts", "text"):
        raise InvalidRequest("TEXT", None, f"task {task} needs TEXT", "send the text, or choose another TASK")
    if audio is None and task == "asr":
        raise InvalidRequest("AUDIO", None, "task asr needs AUDIO", "send the speech, or choose another TASK")
    if text is not None and task == "asr":
        raise InvalidRequest("TEXT", text, "task asr takes AUDIO only", "leave TEXT out, or choose TASK chat")
    if audio is not None and task in ("tts", "text"):
        raise InvalidRequest(
            "AUDIO", f"{audio.size} samples", f"task {task} takes TEXT only", "leave AUDIO out, or choose TASK chat"
        )


def _text(inputs: Mapping[str, Any], limits: Limits) -> str | None:
    text = _string(inputs, "TEXT")
    if text is None:
        return None
    if not text.strip():
        raise InvalidRequest("TEXT", text, "it is empty or only white space", "send words, or leave TEXT out")
    if len(text) > limits.max_text_characters:
        raise InvalidRequest(
            "TEXT",
            text,
            f"its {len(text)} characters are more than {limits.max_text_characters}, which no context of "
            f"{limits.context_tokens} tokens holds",
            "send less text",
        )
    return text


def _audio(inputs: Mapping[str, Any], sample_rate_hz: int, limits: Limits) -> NDArray[np.float32] | None:
    value = inputs.get("AUDIO")
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        try:
            value = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InvalidRequest("AUDIO", value, "it is not a list of numbers", "send float32 samples") from error
    if value.dtype != np.float32:
        raise InvalidRequest("AUDIO", f"dtype {value.dtype}", "it must be float32 (FP32)", "convert it, in [-1, 1]")
    if value.ndim != 1:
        raise InvalidRequest("AUDIO", f"shape {value.shape}", "it must be mono, of shape [samples]", "mix it to mono")
    if value.size == 0:
        raise InvalidRequest("AUDIO", "0 samples", "it is empty", "send speech, or leave AUDIO out")
    seconds = value.size / sample_rate_hz
    shown = f"{value.size} samples at {sample_rate_hz} Hz ({seconds:.2f} s)"
    if seconds > limits.max_audio_seconds:
        raise InvalidRequest("AUDIO", shown, f"at most {limits.max_audio_seconds:g} s are taken", "cut it")
    if seconds < MIN_AUDIO_SECONDS:
        raise InvalidRequest("AUDIO", shown, f"at least {MIN_AUDIO_SECONDS:g} s are needed", "send more speech")
    peak = float(np.abs(value).max())
    if not math.isfinite(peak):
        bad = int(np.argmin(np.isfinite(value)))
        raise InvalidRequest("AUDIO", f"{value[bad]} at sample {bad}", "NaN and infinity are no sound", "send numbers")
    if peak > MAX_AUDIO_PEAK:
        raise InvalidRequest("AUDIO", f"a peak of {peak:g}", "samples lie in [-1, 1]", "divide 16-bit PCM by 32768")
    return value


def _choice(inputs: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = _string(inputs, name)
    if value is None:
        return default
    if value not in choices:
        raise InvalidRequest(name, value, f"it is one of {', '.join(choices)}", "choose one of them")
    return value


def _string(inputs: Mapping[str, Any], name: str) -> str | None:
    value = _single(inputs, name)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(name, value, f"byte {error.start} is not UTF-8", "send UTF-8") from error
    if value is None or isinstance(value, str):
        _check_unicode(name, value or "")
        return value
    raise InvalidRequest(name, value, f"it must be a string, not {type(value).__name__}", "send a string")


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            name, value, f"character {error.start} is a lone surrogate", "send valid Unicode"
        ) from error


def _integer(
    inputs: Mapping[str, Any], name: str, default: Any, low: int, high: int, remedy: str = "choose another"
) -> Any:
    """An integer in low .. high, or the default (of any type) when it was not sent."""
    value = _single(inputs, name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(name, value, f"it must be a whole number, not {type(value).__name__}", remedy)
    if not low <= value <= high:
        raise InvalidRequest(name, value, f"it must be from {low} to {high}", remedy)
    return value


def _number(
    inputs: Mapping[str, Any],
    name: str,
    default: float,
    low: float,
    high: float,
    remedy: str,
    low_excluded: bool = False,
) -> float:
    value = _single(inputs, name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(name, value, f"it must be a number, not {type(value).__name__}", remedy)
    in_range = low < value <= high if low_excluded else low <= value <= high  # False for NaN
    if not in_range:
        words = f"more than {low:g} and at most {high:g}" if low_excluded else f"from {low:g} to {high:g}"
        raise InvalidRequest(name, value, f"it must be {words}", remedy)
    return float(value)


def _single(inputs: Mapping[str, Any], name: str) -> Any:
    """The one element of an input as a plain Python value, or None when it was not sent."""
    value = inputs.get(name)
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        return value
    spec = _SPECS[name]
    expected = np.dtype(_DTYPES[spec.datatype])
    is_text = spec.datatype == "STRING" and value.dtype.kind in "SU"
    if value.dtype != expected and not is_text:
        raise InvalidRequest(name, f"dtype {value.dtype}", f"it must be {spec.datatype}", "convert it")
    if value.size != 1 or value.ndim > 1:
        raise InvalidRequest(name, f"shape {value.shape}", "it must have shape [1]", "send one value")
    single = value.reshape(())
    # The shortest decimal form: a 1.05 that travelled as float32 is the same setting as a default of 1.05.
    return float(str(single)) if spec.datatype == "FP32" else single.item()
