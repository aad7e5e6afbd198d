"""The bars a trained model is held to (what the project promised), and whether these scores pass them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.scores import Scores, TeacherScores

_SPOKEN = ("spoken_to_text", "spoken_to_speech")


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise: `value` must be at most (or at least) `limit`; shares, not per cent."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """False for a value that was not measured."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def bars(scores: Mapping[str, Scores], teacher: TeacherScores) -> list[Bar]:
    """The bars of one model, `scores` by mode; those whose figures were not measured are left out."""
    found = []
    for mode in ("vanilla", "boost", "turbo"):
        if mode in scores:
            extra = 0.05 if mode == "turbo" else 0.0
            for judge, points in (("domain", 0.05), ("flat", 0.12)):
                above = scores[mode].tts_wer.get(judge, math.nan) - teacher.tts.get(judge, math.nan)
                found.append(Bar(f"{mode}: TTS, {judge} judge, above the teacher", above, points + extra))
    for mode in ("vanilla", "boost"):
        if mode in scores:
            found.append(Bar(f"{mode}: ASR word error rate", scores[mode].asr_wer, 0.10))
            found.append(Bar(f"{mode}: spoken question to text", scores[mode].spoken_to_text, 0.90, at_least=True))
            found.append(Bar(f"{mode}: spoken question to speech", scores[mode].spoken_to_speech, 0.75, at_least=True))
            streamed = scores[mode].tts_wer.get("domain", math.nan) - scores[mode].one_shot_wer
            found.append(Bar(f"{mode}: streamed TTS above one-shot decode", streamed, 0.02))
    if {"vanilla", "boost"} <= scores.keys():
        vanilla, boost = scores["vanilla"], scores["boost"]
        pairs = {
            "ASR": boost.asr_wer - vanilla.asr_wer,
            "TTS, domain judge": boost.tts_wer.get("domain", math.nan) - vanilla.tts_wer.get("domain", math.nan),
            "TTS, flat judge": boost.tts_wer.get("flat", math.nan) - vanilla.tts_wer.get("flat", math.nan),
            **{f"{name.replace('_', ' ')}": getattr(vanilla, name) - getattr(boost, name) for name in _SPOKEN},
        }
        found += [Bar(f"boost worse than vanilla: {name}", value, 0.05) for name, value in pairs.items()]
    return [bar for bar in found if not math.isnan(bar.value)]
