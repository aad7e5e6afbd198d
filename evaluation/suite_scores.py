"""From the answers to a suite, and what a judge made of their sound, to its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.case import Case
from evaluation.intervals import Estimate, difference, rate
from evaluation.measures import errors, is_right, normalise, unit

#: Measure -> case -> (errors or right answers, words or 1).
Parts = dict[str, dict[str, tuple[float, float]]]


def is_accuracy(measure: str) -> bool:
    """Whether more of it is better."""
    return measure.startswith("S->")


@dataclass(slots=True)
class SuiteScores:
    """The figures of one run. `skipped`: reason -> cases; `notes`: what stands against trusting the figures."""

    about: dict[str, Any]
    parts: Parts = field(default_factory=dict)
    asked: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    speed: dict[str, float | None] = field(default_factory=dict)

    @property
    def estimates(self) -> dict[str, Estimate]:
        return {measure: rate(_array(parts.values())) for measure, parts in self.parts.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it again."""
        return {**asdict(self), "scores": {name: asdict(estimate) for name, estimate in self.estimates.items()}}


def from_dict(figures: Mapping[str, Any]) -> SuiteScores:
    """Raises KeyError, TypeError or ValueError where the figures are not of a suite."""
    parts = {
        measure: {name: (float(a), float(b)) for name, (a, b) in of.items()} for measure, of in figures["parts"].items()
    }
    return SuiteScores(dict(figures["about"]), parts, int(figures["asked"]), speed=dict(figures["speed"]))


@dataclass(frozen=True, slots=True)
class Change:
    """A measure in two runs, over the `cases` that both have."""

    measure: str
    before: float
    after: float
    difference: Estimate
    cases: int


def compare(before: SuiteScores, after: SuiteScores) -> list[Change]:
    """Every measure that both have."""
    changes = []
    for measure, parts in after.parts.items():
        earlier = before.parts.get(measure, {})
        both = [name for name in parts if name in earlier]
        if not both:
            continue
        old, new = (_array([of[name] for name in both]) for of in (earlier, parts))
        changes.append(Change(measure, rate(old).value, rate(new).value, difference(old, new), len(both)))
    return changes


def score(
    cases: Sequence[Case],
    answers: Mapping[str, Mapping[str, Any]],
    transcripts: Mapping[str, str],
    about: dict[str, Any],
) -> SuiteScores:
    """Figures of the cases, each of which has an answer or a reason why not. `transcripts`: case -> judge's words."""
    scores = SuiteScores(about, asked=len(cases))
    skipped: Counter[str] = Counter()
    answered = []
    for case in cases:
        answer = answers.get(case.id, {"skipped": "no answer"})
        if "skipped" in answer:
            skipped[str(answer["skipped"])] += 1
        elif case.task != "chat" and not normalise(case.reference, case.language):
            skipped["the reference has no words"] += 1
        else:
            answered.append(answer)
            for measure, part in _parts(case, str(answer["text"]), transcripts.get(case.id, "")).items():
                scores.parts.setdefault(measure, {})[case.id] = part
    scores.skipped = dict(sorted(skipped.items()))
    scores.speed = _speed(answered)
    if note := _other_language([case for case in cases if "text" in answers.get(case.id, {})], answers):
        scores.notes.append(note)
    return scores


def _parts(case: Case, text: str, transcript: str) -> dict[str, tuple[float, float]]:
    if case.task == "chat":
        pairs = {"S->T": text, "S->S": transcript}
        return {name: (float(is_right(said, case.answers, case.language)), 1.0) for name, said in pairs.items()}
    found = errors(case.reference, text if case.task == "asr" else transcript, case.language)
    return {f"{case.task.upper()} {unit(case.language)}": (float(found.edits), float(found.words))}


def _speed(answers: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of requests in flight together: medians of times, tokens over the language model's own time."""

    def median(name: str) -> float | None:
        values = [answer[name] for answer in answers if answer[name] is not None]
        return float(np.median(values)) if values else None

    lm_ms, tokens = (sum(answer[name] for answer in answers) for name in ("lm_ms", "tokens"))
    return {
        "LM tokens/s of a stream": tokens / lm_ms * 1e3 if lm_ms else None,
        "first audio, ms": median("first_audio_ms"),
        "whole answer, ms": median("total_ms"),
        "real-time factor": median("real_time_factor"),
        "cut off": float(sum(answer["reason"] != "end_token" for answer in answers)),
    }


def _other_language(cases: Sequence[Case], answers: Mapping[str, Mapping[str, Any]]) -> str:
    """A note where most answers are written in another script than what was asked; "" otherwise."""
    wrong: Counter[str] = Counter()
    for case in cases:
        text = str(answers[case.id]["text"])
        chinese = any("\u4e00" <= character <= "\u9fff" for character in text)
        wrong[case.language] += text.strip() != "" and chinese != (case.language == "zh")
    language, count = max(wrong.items(), key=lambda item: item[1], default=("", 0))
    if count <= len(cases) / 2:
        return ""
    return (
        f"{count} of {len(cases)} answers are not in the suite's language ({language}): does the checkpoint speak it?"
    )


def _array(parts: Any) -> NDArray[np.float64]:
    return np.array(list(parts), dtype=np.float64).reshape(-1, 2)
