"""Clips of earlier turns in a request: what is taken, and one clear error for each way to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import Limits
from vita_audio.contract.request import check, parse_request

FIRST, SECOND = np.full(800, 0.1, np.float32), np.full(500, 0.2, np.float32)
BOTH = np.concatenate((FIRST, SECOND))
LONG = np.zeros(1201 * 16_000, np.float32)
LIMITS = Limits(4096, 4096, 1024, 10, (1, 10, 4, 10))


def asked(**inputs: Any) -> dict[str, Any]:
    return {"TEXT": "Go on.", "HISTORY": [1, 2], "HISTORY_AUDIO": BOTH, "HISTORY_AUDIO_SAMPLES": [800, 500], **inputs}


def test_clips_come_apart_as_they_were_joined() -> None:
    for lengths in ([800, 500], np.array([800, 500], np.int32)):
        clips = parse_request(asked(HISTORY_AUDIO_SAMPLES=lengths), LIMITS).history_clips
        assert [clip.tolist() for clip in clips] == [FIRST.tolist(), SECOND.tolist()]
    assert parse_request(asked(HISTORY_AUDIO=None, HISTORY_AUDIO_SAMPLES=None), LIMITS).history_clips == ()
    none = asked(HISTORY_AUDIO=BOTH[:0], HISTORY_AUDIO_SAMPLES=np.zeros(0, np.int32))
    assert parse_request(none, LIMITS).history_clips == ()


@pytest.mark.parametrize(
    ("changed", "field", "words"),
    [
        ({"HISTORY_AUDIO": None}, "HISTORY_AUDIO", "HISTORY_AUDIO_SAMPLES was sent without it"),
        ({"HISTORY_AUDIO_SAMPLES": None}, "HISTORY_AUDIO_SAMPLES", "HISTORY_AUDIO was sent without it"),
        ({"HISTORY_AUDIO_SAMPLES": [800, 501]}, "HISTORY_AUDIO_SAMPLES", "1301 in all.*HISTORY_AUDIO has 1300 samples"),
        ({"HISTORY_AUDIO_SAMPLES": [1300, 0]}, "HISTORY_AUDIO_SAMPLES", "at least one sample"),
        ({"HISTORY_AUDIO_SAMPLES": [800.0, 500.0]}, "HISTORY_AUDIO_SAMPLES", "one row of whole numbers"),
        ({"HISTORY_AUDIO_SAMPLES": [[800], [500, 1]]}, "HISTORY_AUDIO_SAMPLES", "not a list of numbers"),
        ({"HISTORY_AUDIO_SAMPLES": [1299, 1]}, "HISTORY_AUDIO", "at least 0.02 s"),
        ({"HISTORY_AUDIO": BOTH * np.nan}, "HISTORY_AUDIO", "NaN and infinity"),
        ({"HISTORY_AUDIO": BOTH * 1e4}, "HISTORY_AUDIO", "divide 16-bit PCM"),
        ({"HISTORY_AUDIO": BOTH.reshape(2, -1)}, "HISTORY_AUDIO", "it must be mono"),
        ({"HISTORY_AUDIO": BOTH.astype(np.float64)}, "HISTORY_AUDIO", "it must be float32"),
        (
            {
                "HISTORY_AUDIO": np.zeros(1201 * 16_000, np.float32),
                "HISTORY_AUDIO_SAMPLES": [1_600_000] * 12 + [16_000],
            },
            "HISTORY_AUDIO",
            "1201 s.*at most 1200 s",
        ),
        ({"HISTORY": None}, "HISTORY_AUDIO", "without HISTORY it belongs to no turn"),
        ({"TASK": "asr", "TEXT": None, "AUDIO": FIRST, "HISTORY": None}, "HISTORY_AUDIO", "task asr takes AUDIO only"),
    ],
)
def test_clips_that_are_none_are_refused_in_one_line(changed: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check(asked(**changed))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
