"""One request: its speech loaded, its fields checked against the public contract before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import INPUTS, RequestFields
from vita_audio.contract.request import check
from vita_client.audio import load_speech

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A checked request: tensor name -> value; AUDIO is float32 [samples], mono, 16 kHz. A missing field has the
    server's default. It may be sent many times: a load test builds it once.
    """

    values: Mapping[str, Any]


def build_request(text: str | None = None, **fields: Unpack[RequestFields]) -> Request:
    """Check the fields of a request and load its speech.

    Args:
        text: what to say, ask or answer to.
        fields: `vita_audio.contract.fields.INPUTS` by keyword; None is "not sent". `audio` is a path, a binary file or
            an array, `sample_rate` belongs to an array (see `audio.load_speech`). `history_audio` is at 16 kHz, as
            AUDIO was sent.

    Raises:
        InvalidRequest: names the field, its value and the limit.
    """
    names = {field.keyword: field.name for field in INPUTS}
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise TypeError(f"unknown request fields: {', '.join(unknown)}")
    inputs: dict[str, Any] = {names[keyword]: value for keyword, value in fields.items()} | {"TEXT": text}
    rate_hz = inputs.pop("SAMPLE_RATE", None)
    if inputs.get("AUDIO") is not None:
        inputs["AUDIO"] = load_speech(inputs["AUDIO"], rate_hz)
    elif rate_hz is not None:
        raise InvalidRequest("SAMPLE_RATE", rate_hz, "it belongs to AUDIO, which is missing", "leave it out")
    return Request(check(inputs))


def past_speech(clips: Sequence[NDArray[np.float32]]) -> RequestFields:
    """The fields that bring the speech of earlier turns, each [samples] at 16 kHz; none without any."""
    if not clips:
        return {}
    return {"history_audio": np.concatenate(clips), "history_audio_samples": [len(clip) for clip in clips]}


def check_timeout(timeout_s: float) -> float:
    """A deadline in seconds; there is no "for ever".

    Raises:
        InvalidRequest: field timeout_s.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= 86_400:
        raise InvalidRequest("timeout_s", timeout_s, "it is above 0 and at most 86400 seconds")
    return float(timeout_s)
