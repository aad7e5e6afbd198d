"""From a case to the client's request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from evaluation.case import Case
from vita_audio.contract.errors import InvalidRequest
from vita_client import build_request
from vita_client.request import Request

#: How much earlier than its last part a recording may end: times are rounded.
_LATE_S = 0.1


def request_of(
    case: Case,
    mode: str | None,
    max_tokens: int | None,
    temperature: float | None = None,
    repetition_penalty: float | None = None,
) -> Request:
    """None is the server's default. Reads the case's sound.

    Raises:
        InvalidRequest: the sound is missing or unreadable, or a value is not valid.
    """
    sound, rate_hz = _sound(case)
    return build_request(
        case.text,
        audio=sound,
        sample_rate=rate_hz,
        task=case.task,
        mode=mode,
        seed=case.seed,
        max_tokens=max_tokens,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
    )


def _sound(case: Case) -> tuple[NDArray[np.float32] | Path | None, int | None]:
    """What `build_request` takes: a file, or the samples of a part of one with their rate."""
    if case.audio is None or case.span_s is None or not case.audio.is_file():
        return case.audio, None
    begin_s, end_s = case.span_s
    try:
        with soundfile.SoundFile(case.audio) as file:
            file.seek(round(begin_s * file.samplerate))
            frames = round((end_s - begin_s) * file.samplerate)
            wave = file.read(max(frames, 0), dtype="float32", always_2d=True)
            if frames < 1 or len(wave) < frames - _LATE_S * file.samplerate:
                raise InvalidRequest(
                    "AUDIO", f"{begin_s:g} to {end_s:g} s of {case.audio}", "the sound has no such part"
                )
            return wave, file.samplerate
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise InvalidRequest("AUDIO", str(case.audio), "its part cannot be read") from error
