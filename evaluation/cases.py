"""What is asked in an evaluation: samples of the test split, with what is right and what the teacher said."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import EvaluationError
from training.data.manifest import ChatSample, read_chat

#: asr: speech -> text. tts: text -> speech. spoken: spoken question -> spoken answer. typed: typed question -> spoken
#: answer. text: typed question -> written answer.
KINDS = ("asr", "tts", "spoken", "typed", "text")


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what to hold the answer against.

    `text`, `audio`: what is sent (one of them). `reference`: the words the answer should have. `teacher`: the teacher's
    sound of `reference`, where the answer is spoken. `seed`: of the sampling and of the decoder's noise.
    """

    kind: str
    sample: ChatSample
    text: str | None
    audio: Path | None
    reference: str
    teacher: Path | None
    seed: int

    @property
    def task(self) -> str:
        """The public contract's task."""
        return self.sample.task


def load_cases(data: Path, limit: int, seed: int = 0) -> list[Case]:
    """At most `limit` cases of each kind, drawn from the test split; the same for the same seed.

    Raises:
        EvaluationError: no data there, sounds are missing (the first is named), or the test split is empty.
    """
    by_kind: dict[str, list[ChatSample]] = {kind: [] for kind in KINDS}
    for sample in read_chat(data, "test"):
        if sample.task != "dialogue":
            by_kind[_kind(sample)].append(sample)
    cases = []
    for kind, samples in by_kind.items():
        random.Random(f"{seed} {kind}").shuffle(samples)
        cases += [_case(kind, sample, data, number) for number, sample in enumerate(samples[:limit])]
    if not cases:
        raise EvaluationError(f"{data}: its test split is empty; make the data with test_* above 0")
    wanted = [path for case in cases for path in (case.audio, case.teacher) if path is not None]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise EvaluationError(f"{missing[0]} and {len(missing) - 1} more sounds are missing: make the data again")
    return cases


def _kind(sample: ChatSample) -> str:
    if sample.task == "chat":
        return "spoken" if sample.voice else "typed"
    return sample.task


def _case(kind: str, sample: ChatSample, data: Path, number: int) -> Case:
    heard = kind in ("asr", "spoken")
    speaks = kind in ("tts", "spoken", "typed")
    return Case(
        kind=kind,
        sample=sample,
        text=None if heard else sample.question or sample.answer,
        audio=data / sample.audios[0] if heard else None,
        reference=sample.answer,
        teacher=data / sample.audios[-1] if speaks else None,
        seed=number,
    )
