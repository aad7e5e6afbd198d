"""Acceptance thresholds of a trained model, and whether its scores pass them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.scores import Scores, TeacherScores

_SPOKEN = ("spoken_to_text", "spoken_to_speech")


@dataclass(frozen=True, slots=True)
class Threshold:
    """One requirement: `value` must be at most (or at least) `limit`; shares, not per cent."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """False for a value that was not measured."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def thresholds(scores: Mapping[str, Scores], teacher: TeacherScores) -> list[Threshold]:
    """The thresholds of one model, `scores` by mode; those whose figures were not measured are left out."""
    found = []
    for mode in ("vanilla", "boost", "turbo"):
        if mode in scores:
            extra = 0.05 if mode == "turbo" else 0.0
            for evaluator, points in (("domain", 0.05), ("flat", 0.12)):
                above = scores[mode].tts_wer.get(evaluator, math.nan) - teacher.tts.get(evaluator, math.nan)
                found.append(Threshold(f"{mode}: TTS, {evaluator} evaluator, above the teacher", above, points + extra))
    for mode in ("vanilla", "boost"):
        if mode in scores:
            of, streamed = scores[mode], scores[mode].tts_wer.get("domain", math.nan) - scores[mode].one_shot_wer
            found += [
                Threshold(f"{mode}: ASR word error rate", of.asr_wer, 0.10),
                Threshold(f"{mode}: spoken question to text", of.spoken_to_text, 0.90, at_least=True),
                Threshold(f"{mode}: spoken question to speech", of.spoken_to_speech, 0.75, at_least=True),
                Threshold(f"{mode}: streamed TTS above one-shot decode", streamed, 0.02),
            ]
            if "text memory" in of.dialogues:
                right = of.dialogues["text memory"]["right"]
                found.append(Threshold(f"{mode}: follow-ups that need memory, text", right, 0.80, at_least=True))
    if {"vanilla", "boost"} <= scores.keys():
        vanilla, boost = scores["vanilla"], scores["boost"]
        pairs = {
            "ASR": boost.asr_wer - vanilla.asr_wer,
            "TTS, domain evaluator": boost.tts_wer.get("domain", math.nan) - vanilla.tts_wer.get("domain", math.nan),
            "TTS, flat evaluator": boost.tts_wer.get("flat", math.nan) - vanilla.tts_wer.get("flat", math.nan),
            **{f"{name.replace('_', ' ')}": getattr(vanilla, name) - getattr(boost, name) for name in _SPOKEN},
        }
        found += [Threshold(f"boost worse than vanilla: {name}", value, 0.05) for name, value in pairs.items()]
    return [threshold for threshold in found if not math.isnan(threshold.value)]
