"""Speech in a request: AUDIO of the turn, and HISTORY_AUDIO, the clips of the turns before it (Plus checkpoints)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import (
    MAX_AUDIO_PEAK,
    MAX_AUDIO_SECONDS,
    MAX_HISTORY_AUDIO_SECONDS,
    MIN_AUDIO_SECONDS,
)

CLIPS, LENGTHS = "HISTORY_AUDIO", "HISTORY_AUDIO_SAMPLES"


def check_duration(samples: int, rate_hz: int, longest_s: float = MAX_AUDIO_SECONDS, field: str = "AUDIO") -> None:
    """Check how long speech is, before its samples are read.

    Raises:
        InvalidRequest: `field`; empty, shorter than 0.02 s or longer than `longest_s`.
    """
    if samples == 0:
        raise InvalidRequest(field, "0 samples", "it is empty", f"send speech, or leave {field} out")
    seconds = samples / rate_hz
    shown = f"{samples} samples at {rate_hz} Hz ({seconds:.2f} s)"
    if seconds > longest_s:
        raise InvalidRequest(field, shown, f"at most {longest_s:g} s are taken", "cut it")
    if seconds < MIN_AUDIO_SECONDS:
        raise InvalidRequest(field, shown, f"at least {MIN_AUDIO_SECONDS:g} s are needed", "send more speech")


def check_audio(
    samples: NDArray[np.float32], rate_hz: int, longest_s: float = MAX_AUDIO_SECONDS, field: str = "AUDIO"
) -> None:
    """Check speech [samples] at `rate_hz`.

    Raises:
        InvalidRequest: `field`; its length (`check_duration`), a sample that is not finite, or the wrong scale.
    """
    check_duration(samples.size, rate_hz, longest_s, field)
    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        bad = int(np.argmin(np.isfinite(samples)))
        raise InvalidRequest(field, f"{samples[bad]} at sample {bad}", "NaN and infinity are no sound", "send numbers")
    if peak > MAX_AUDIO_PEAK:
        raise InvalidRequest(field, f"a peak of {peak:g}", "samples lie in [-1, 1]", "divide 16-bit PCM by 32768")


def check_clips(
    joined: Any, lengths: Any, rate_hz: int, longest_s: float = MAX_AUDIO_SECONDS
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """HISTORY_AUDIO, float32 [samples], and HISTORY_AUDIO_SAMPLES, int32 [clips]; each clip is checked as AUDIO.

    Raises:
        InvalidRequest: one of the two; one without the other, lengths that are not those of the clips, or too much
            speech in all.
    """
    for field, sent, other in ((CLIPS, joined, LENGTHS), (LENGTHS, lengths, CLIPS)):
        if sent is None:
            raise InvalidRequest(field, None, f"{other} was sent without it", "send both, or none")
    joined, lengths = speech_array(joined, CLIPS), _lengths(lengths)
    if lengths.sum() != joined.size:
        limit = f"{CLIPS} has {joined.size} samples"
        raise InvalidRequest(LENGTHS, f"{lengths.sum()} in all", limit, "send the samples of each clip, in order")
    if joined.size > MAX_HISTORY_AUDIO_SECONDS * rate_hz:
        shown, limit = f"{joined.size / rate_hz:.0f} s", f"at most {MAX_HISTORY_AUDIO_SECONDS:g} s are taken"
        raise InvalidRequest(CLIPS, shown, limit, "begin a new conversation")
    for clip in split_clips(joined, lengths):
        check_audio(clip, rate_hz, longest_s, CLIPS)
    return joined, lengths.astype(np.int32)


def split_clips(joined: NDArray[np.float32], lengths: NDArray[np.integer]) -> tuple[NDArray[np.float32], ...]:
    """The clips of `check_clips`, as views."""
    return tuple(np.split(joined, np.cumsum(lengths)[:-1])) if len(lengths) else ()


def _lengths(value: Any) -> NDArray[np.int64]:
    """HISTORY_AUDIO_SAMPLES as int64 [clips], each at least 1."""
    try:
        lengths = np.asarray(value)
    except ValueError as error:
        raise InvalidRequest(LENGTHS, value, "it is not a list of numbers", "send one for each clip") from error
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        shown = f"{lengths.dtype} {lengths.shape}"
        raise InvalidRequest(LENGTHS, shown, "it is one row of whole numbers", "send one for each clip")
    if lengths.size and lengths.min() < 1:
        raise InvalidRequest(LENGTHS, int(lengths.min()), "a clip has at least one sample", "leave it out")
    return lengths.astype(np.int64)


def speech_array(value: Any, field: str = "AUDIO") -> NDArray[np.float32]:
    """Speech as float32 [samples].

    Raises:
        InvalidRequest: `field`; not numbers, another type or shape.
    """
    if not isinstance(value, np.ndarray):
        try:
            value = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(field, value, "it is not a list of numbers", "send float32 samples") from error
    if value.dtype != np.float32:
        raise InvalidRequest(field, f"dtype {value.dtype}", "it must be float32 (FP32)", "convert it, in [-1, 1]")
    if value.ndim != 1:
        raise InvalidRequest(field, f"shape {value.shape}", "it must be mono, of shape [samples]", "mix it to mono")
    return value
