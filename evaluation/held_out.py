"""Cases of generated data: samples of its test split, with what is right and the teacher's sound."""

from __future__ import annotations

import random
from pathlib import Path

from evaluation.case import KINDS, Case
from evaluation.errors import EvaluationError
from training.data.manifest import ChatSample, read_chat


def load_cases(data: Path, limit: int, seed: int = 0) -> list[Case]:
    """At most `limit` cases of each kind, drawn from the test split; the same for the same seed.

    Raises:
        EvaluationError: no data there, sounds are missing (the first is named), or the test split is empty.
    """
    by_kind: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    for sample in read_chat(data, "test"):
        if sample.task != "dialogue":
            case = _case(sample, data)
            by_kind[case.kind].append(case)
    cases = []
    for kind, found in by_kind.items():
        random.Random(f"{seed} {kind}").shuffle(found)
        cases += found[:limit]
    if not cases:
        raise EvaluationError(f"{data}: its test split is empty; make the data with test_* above 0")
    wanted = [path for case in cases for path in (case.audio, case.teacher) if path is not None]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise EvaluationError(f"{missing[0]} and {len(missing) - 1} more sounds are missing: make the data again")
    return cases


def _case(sample: ChatSample, data: Path) -> Case:
    heard = bool(sample.voice)  # the user speaks
    return Case(
        id=sample.id,
        task=sample.task,
        language="en",
        reference=sample.answer,
        question=sample.question,
        answers=sample.accepted,
        audio=data / sample.audios[0] if heard else None,
        teacher=data / sample.audios[-1] if sample.task in ("tts", "chat") else None,
        family=sample.family,
        voice=sample.voice,
        held_out=sample.held_out,
    )
