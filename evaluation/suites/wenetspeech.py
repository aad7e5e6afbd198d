"""WenetSpeech: WenetSpeech.json names long recordings, each with its segments and the subsets they are in."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find


def read(folder: Path, part: str) -> list[Case]:
    """`part`: test_net or test_meeting."""
    path = find(folder, "WenetSpeech", "WenetSpeech.json")
    try:
        recordings = json.loads(path.read_text(encoding="utf-8"))["audios"]
        cases = [
            Case(
                id=segment["sid"],
                task="asr",
                language="zh",
                reference=segment["text"],
                audio=folder / recording["path"],
                span_s=(float(segment["begin_time"]), float(segment["end_time"])),
            )
            for recording in recordings
            for segment in recording["segments"]
            if part.upper() in segment["subsets"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} is not WenetSpeech's list of recordings: {error!r}") from error
    if not cases:
        raise EvaluationError(f"{path} has no segment in the subset {part.upper()}")
    return cases
