"""Checks requests against the table of fields, and fills in the defaults; every bad input gets one InvalidRequest."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import DEFAULT_TASK, INPUTS, Field
from vita_audio.contract.limits import MAX_AUDIO_SECONDS, MAX_HISTORY_TOKENS, Limits
from vita_audio.contract.messages import GenerationSettings
from vita_audio.contract.modes import parse_mode
from vita_audio.contract.past_messages import Message, read_messages
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.contract.speech import CLIPS, LENGTHS, check_audio, check_clips, speech_array, split_clips

_BY_NAME = {field.name: field for field in INPUTS}
_ARRAYS = {field.name for field in INPUTS if field.shape == (-1,)}
#: Fields of the table that travel on under their keyword; MODE does so with its pattern.
_SETTINGS = {setting.name for setting in dataclasses.fields(GenerationSettings)} - {"mode"}


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A checked request. `audio` is float32 mono [samples] at `sample_rate_hz`, or None; `history` int32 [ids], maybe
    empty, or in its place `messages`. `history_clips`: the speech in the history, each as `audio`. `drop_turns`: of a
    history that is too long.
    """

    settings: GenerationSettings
    text: str | None
    audio: NDArray[np.float32] | None
    sample_rate_hz: int
    system: str | None = None
    messages: tuple[Message, ...] = ()
    history: NDArray[np.int32] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    history_clips: tuple[NDArray[np.float32], ...] = ()
    heard: int | None = None
    drop_turns: bool = False

    @property
    def task(self) -> str:
        return self.settings.task


def check(inputs: Mapping[str, Any], limits: Limits | None = None) -> dict[str, Any]:
    """Check the fields of one request; needs no server.

    Args:
        inputs: public input name -> numpy array as Triton delivers it, or a Python value, or None when it was not sent.
        limits: what the engines can serve; without, only the bounds that hold for every server are checked.

    Returns:
        What was sent, by name, as plain values (AUDIO float32 [samples], MODE in its canonical form), and TASK always.

    Raises:
        InvalidRequest: naming the first field that is wrong.
    """
    for name in sorted(set(inputs) - set(_BY_NAME)):
        raise InvalidRequest(name, inputs[name], f"inputs are {', '.join(_BY_NAME)}", "leave it out")
    values: dict[str, Any] = {"TASK": DEFAULT_TASK}
    for name in _BY_NAME:
        if name not in _ARRAYS and (value := check_field(name, inputs.get(name), limits)) is not None:
            values[name] = value
    if inputs.get("HISTORY") is not None:
        values["HISTORY"] = check_history(inputs["HISTORY"])
    rate_hz = values.get("SAMPLE_RATE", INPUT_SAMPLE_RATE_HZ)
    longest_s = MAX_AUDIO_SECONDS if limits is None else limits.max_audio_seconds
    if inputs.get("AUDIO") is not None:
        values["AUDIO"] = speech_array(inputs["AUDIO"])
        check_audio(values["AUDIO"], rate_hz, longest_s)
    if inputs.get(CLIPS) is not None or inputs.get(LENGTHS) is not None:
        values[CLIPS], values[LENGTHS] = check_clips(inputs.get(CLIPS), inputs.get(LENGTHS), rate_hz, longest_s)
    _check_task(values)
    return values


def check_field(name: str, value: Any, limits: Limits | None = None) -> Any:
    """One field of one value, checked alone: str, int or float; None when it was not sent.

    Raises:
        InvalidRequest: its type, range or form is wrong.
    """
    field = _BY_NAME[name]
    value = _single(field, value)
    if value is None:
        return None
    if name in ("TEXT", "SYSTEM"):
        _check_text(name, value, limits)
    elif name == "MESSAGES":
        read_messages(value)
    elif name == "MODE":
        return parse_mode(value, None if limits is None else limits.mctp_modules).name
    return value if field.python_type is str else _number(field, value, limits)


def parse_request(inputs: Mapping[str, Any], limits: Limits) -> SpeechRequest:
    """`check`, and the defaults of the request's task for what was not sent.

    Raises:
        InvalidRequest: naming the first field that is wrong.
    """
    sent = check(inputs, limits)
    values = {f.name: sent[f.name] if f.name in sent else f.default_for(sent["TASK"], limits) for f in INPUTS}
    mode = parse_mode(values["MODE"], limits.mctp_modules)
    settings = {field.keyword: values[field.name] for field in INPUTS if field.keyword in _SETTINGS}
    return SpeechRequest(
        settings=GenerationSettings(mode=mode.name, pattern=mode.pattern, **settings),
        text=values["TEXT"],
        audio=values["AUDIO"],
        sample_rate_hz=values["SAMPLE_RATE"],
        system=values["SYSTEM"],
        messages=() if values["MESSAGES"] is None else read_messages(values["MESSAGES"]),
        history=np.zeros(0, np.int32) if values["HISTORY"] is None else values["HISTORY"],
        history_clips=() if values[CLIPS] is None else split_clips(values[CLIPS], values[LENGTHS]),
        heard=values["HEARD"],
        drop_turns=values["HISTORY_OVERFLOW"] == "drop",
    )


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


def check_history(value: Any) -> NDArray[np.int32]:
    """HISTORY as int32 [ids]; which ids they may be depends on the checkpoint (`vita_audio.text.history`).

    Raises:
        InvalidRequest: not one row of whole numbers from 0 on, or more than `MAX_HISTORY_TOKENS`.
    """
    remedy = "send PROMPT and TOKENS of the last answer, joined"
    try:
        ids = np.asarray(value)
    except ValueError as error:
        raise InvalidRequest("HISTORY", value, "it is not a list of ids", remedy) from error
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise InvalidRequest("HISTORY", f"{ids.dtype} {ids.shape}", "it is one row of whole numbers", remedy)
    if ids.size > MAX_HISTORY_TOKENS:
        raise InvalidRequest(
            "HISTORY", f"{ids.size} ids", f"at most {MAX_HISTORY_TOKENS} are taken", "begin a new conversation"
        )
    if ids.size and not 0 <= ids.min() <= ids.max() < 2**31:
        raise InvalidRequest("HISTORY", f"{ids.min()} to {ids.max()}", "ids are numbers from 0 to 2147483647", remedy)
    return ids.astype(np.int32)


def _check_task(values: Mapping[str, Any]) -> None:
    """Which of TEXT and AUDIO the task takes and needs."""
    task = values["TASK"]
    if "TEXT" not in values and "AUDIO" not in values and task == DEFAULT_TASK:
        raise InvalidRequest("TEXT", None, "neither TEXT nor AUDIO was sent", "send one of them, or both")
    for field in INPUTS:
        if task in field.needed_by and field.name not in values:
            raise InvalidRequest(field.name, None, f"task {task} needs {field.name}", "send it, or choose another TASK")
    for field in INPUTS:
        if task not in field.tasks and field.name in values:
            value = values[field.name]
            shown = f"{value.size} samples" if isinstance(value, np.ndarray) else value
            taken = ", ".join(other.name for other in INPUTS if task in other.needed_by)
            raise InvalidRequest(field.name, shown, f"task {task} takes {taken} only", f"leave {field.name} out")
    past = values.get("HISTORY", ())
    if len(past) and "SYSTEM" in values:
        raise InvalidRequest(
            "SYSTEM", values["SYSTEM"], "HISTORY begins with its own", "send it with the first turn only"
        )
    if len(past) and "MESSAGES" in values:
        raise InvalidRequest("MESSAGES", "given", "HISTORY has the turns so far", "send one of them")
    if not len(past) and "HISTORY_AUDIO" in values:
        shown = f"{values['HISTORY_AUDIO'].size} samples"
        raise InvalidRequest("HISTORY_AUDIO", shown, "without HISTORY it belongs to no turn", "leave it out")
    if not len(past) and "HEARD" in values:
        raise InvalidRequest("HEARD", values["HEARD"], "without HISTORY there is no answer to cut", "leave it out")


def _check_text(field: str, text: str, limits: Limits | None) -> None:
    if not text.strip():
        raise InvalidRequest(field, text, "it is empty or only white space", f"send words, or leave {field} out")
    if limits is not None and len(text) > limits.max_text_characters:
        raise InvalidRequest(
            field,
            text,
            f"its {len(text)} characters are more than {limits.max_text_characters}, which no context of "
            f"{limits.context_tokens} tokens holds",
            "send less text",
        )


def _single(field: Field, value: Any) -> Any:
    """One value of a field as str, int or float, or None when it was not sent; its range is not looked at."""
    if isinstance(value, np.ndarray):
        if value.dtype != field.dtype and not (field.python_type is str and value.dtype.kind in "SU"):
            raise InvalidRequest(field.name, f"dtype {value.dtype}", f"it must be {field.datatype}", "convert it")
        if value.size != 1 or value.ndim > 1:
            raise InvalidRequest(field.name, f"shape {value.shape}", "it must have shape [1]", "send one value")
        value = value.reshape(-1)[0]
    if value is None:
        return None
    if field.python_type is str:
        return _string(field, value)
    kind = "a whole number" if field.python_type is int else "a number"
    wrong = InvalidRequest(field.name, value, f"it must be {kind}, not {type(value).__name__}", field.note)
    if isinstance(value, (bool, np.bool_)):
        raise wrong
    if isinstance(value, np.floating) and field.python_type is float:
        # The shortest decimal form: a 1.05 that travelled as float32 is the same setting as a default of 1.05.
        return float(str(value))
    try:
        return operator.index(value) if field.python_type is int else float(value + 0.0)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error


def _string(field: Field, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(field.name, value, f"byte {error.start} is not UTF-8", "send UTF-8") from error
    if not isinstance(value, str):
        raise InvalidRequest(field.name, value, f"it must be a string, not {type(value).__name__}", "send a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        limit = f"character {error.start} is a lone surrogate"
        raise InvalidRequest(field.name, value, limit, "send valid Unicode") from error
    if field.choices and value not in field.choices:
        raise InvalidRequest(field.name, value, f"it is {field.allowed()}", "choose one of them")
    return str(value)


def _number(field: Field, value: float, limits: Limits | None) -> float:
    low, high = field.low, field.upper(limits)
    if low is None or high is None:
        return value
    if not (low < value <= high if field.low_excluded else low <= value <= high):  # NaN is not in any range
        remedy = field.note or "choose another value"
        raise InvalidRequest(field.name, value, f"it must be {field.allowed(limits)}", remedy)
    return value
