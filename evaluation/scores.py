"""From outcomes to figures: error rates, accuracies, speed, distance; always beside the teacher's own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from evaluation.asr_evaluators import EVALUATORS, AsrEvaluators, Errors, Wave, word_errors
from evaluation.case import Case
from evaluation.cepstra import cepstra, distance_db
from evaluation.serving import Outcome
from training.data.answers import is_right
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

NO_ERRORS = Errors(0, 0)


@dataclass(slots=True)
class TeacherScores:
    """The evaluators' figures on the teacher's own sound of the same texts."""

    tts: dict[str, float] = field(default_factory=dict)  # evaluator -> word error rate
    tts_by_family: dict[str, dict[str, float]] = field(default_factory=dict)
    spoken: float = math.nan  # S -> S accuracy of the teacher's answers, domain evaluator
    typed: float = math.nan


@dataclass(slots=True)
class Scores:
    """The figures of one model in one mode. Rates are shares; `*_by_*` break them down.

    `codec_wer`, by evaluator: of the teacher's sound through the model's codes and decoder, the same in every mode:
    what a perfect language model would reach.
    """

    label: str
    mode: str
    requests: int = 0
    cut_off: int = 0  # did not end by themselves
    asr_wer: float = math.nan
    tts_wer: dict[str, float] = field(default_factory=dict)
    tts_wer_by_family: dict[str, dict[str, float]] = field(default_factory=dict)
    codec_wer: dict[str, float] = field(default_factory=dict)
    tts_text_wer: float = math.nan  # of the text that is written along with the speech
    tts_distance_db: float = math.nan
    one_shot_wer: float = math.nan  # domain evaluator, the same tokens decoded at once
    one_shot_distance_db: float = math.nan
    spoken_to_text: float = math.nan
    spoken_to_speech: float = math.nan
    typed_to_text: float = math.nan
    typed_to_speech: float = math.nan
    text_to_text: float = math.nan
    spoken_by_family: dict[str, dict[str, float]] = field(default_factory=dict)
    spoken_by_held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    spoken_by_voice: dict[str, dict[str, float]] = field(default_factory=dict)
    asr_by_voice: dict[str, float] = field(default_factory=dict)
    #: "spoken turn 2", "text memory", ...: share of right answers, and how many were asked for.
    dialogues: dict[str, dict[str, float]] = field(default_factory=dict)
    lm_tokens_per_s: float = math.nan
    tokens_per_s: float = math.nan
    first_audio_ms: float = math.nan
    real_time_factor: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def score_teacher(cases: Sequence[Case], asr: AsrEvaluators) -> TeacherScores:
    """Error rates of the teacher's own sound of every spoken reference."""
    scores = TeacherScores()
    spoken = [case for case in cases if case.kind == "tts"]
    for evaluator in EVALUATORS:
        transcripts = _teacher_transcripts(spoken, asr, evaluator)
        found = [asr.errors(case.reference, text) for case, text in zip(spoken, transcripts, strict=True)]
        scores.tts[evaluator] = _rate(found)
        families = ((case.family, errors) for case, errors in zip(spoken, found, strict=True))
        for name, rate in _rates(families).items():
            scores.tts_by_family.setdefault(name, {})[evaluator] = rate
    for kind in ("spoken", "typed"):
        asked = [case for case in cases if case.kind == kind]
        transcripts = _teacher_transcripts(asked, asr, "domain")
        right = [_is_right(text, case, asr) for case, text in zip(asked, transcripts, strict=True)]
        setattr(scores, kind, sum(right) / len(right) if right else math.nan)
    return scores


def score_codec(cases: Sequence[Case], asr: AsrEvaluators, give_back: Callable[[Wave, int], Wave]) -> dict[str, float]:
    """Word error rates by evaluator of the teacher's sound through a model's codes and decoder; {} without TTS.

    Args:
        give_back: (16 kHz speech, seed) -> the sound at the decoder's rate.
    """
    spoken = [case for case in cases if case.kind == "tts"]
    waves = [(give_back(_teacher_wave(case)[0], case.seed), OUTPUT_SAMPLE_RATE_HZ) for case in spoken]
    if not waves:
        return {}
    transcripts = {evaluator: asr.transcribe(waves, evaluator) for evaluator in EVALUATORS}
    return {
        evaluator: _rate(asr.errors(case.reference, text) for case, text in zip(spoken, texts, strict=True))
        for evaluator, texts in transcripts.items()
    }


def score(
    label: str,
    mode: str,
    outcomes: Sequence[Outcome],
    asr: AsrEvaluators,
    decode_at_once: Callable[[Outcome], Wave],
) -> tuple[Scores, list[dict[str, Any]]]:
    """The figures of one model and mode, and one plain record per outcome (answer, transcripts and verdicts)."""
    scores = Scores(label, mode, len(outcomes), sum(outcome.reason != "end_token" for outcome in outcomes))
    records: list[dict[str, Any]] = []
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.case.kind].append(outcome)
    _score_asr(by_kind["asr"], scores, records)
    _score_tts(by_kind["tts"], scores, records, asr, decode_at_once)
    for kind in ("spoken", "typed", "text"):
        _score_answers(kind, by_kind[kind], scores, records, asr)
    _score_speed([outcome for outcome in outcomes if outcome.case.teacher is not None], scores)
    return scores, records


def _score_asr(outcomes: Sequence[Outcome], scores: Scores, records: list[dict[str, Any]]) -> None:
    errors = [word_errors(outcome.case.reference, outcome.text) for outcome in outcomes]
    scores.asr_wer = _rate(errors)
    voices = ((outcome.case.voice, error) for outcome, error in zip(outcomes, errors, strict=True))
    scores.asr_by_voice = _rates(voices)
    records += [_record(outcome, edits=error.edits) for outcome, error in zip(outcomes, errors, strict=True)]


def _score_tts(
    outcomes: Sequence[Outcome],
    scores: Scores,
    records: list[dict[str, Any]],
    asr: AsrEvaluators,
    decode_at_once: Callable[[Outcome], Wave],
) -> None:
    if not outcomes:
        return
    transcripts = {
        evaluator: list(asr.transcribe([(o.wave, o.rate_hz) for o in outcomes], evaluator)) for evaluator in EVALUATORS
    }
    at_once = [decode_at_once(outcome) for outcome in outcomes]
    transcripts["one_shot"] = list(
        asr.transcribe([(w, o.rate_hz) for w, o in zip(at_once, outcomes, strict=True)], "domain")
    )
    errors = {
        name: [asr.errors(outcome.case.reference, text) for outcome, text in zip(outcomes, texts, strict=True)]
        for name, texts in transcripts.items()
    }
    scores.tts_wer = {evaluator: _rate(errors[evaluator]) for evaluator in EVALUATORS}
    scores.one_shot_wer = _rate(errors["one_shot"])
    for evaluator in EVALUATORS:
        families = ((outcome.case.family, error) for outcome, error in zip(outcomes, errors[evaluator], strict=True))
        for name, rate in _rates(families).items():
            scores.tts_wer_by_family.setdefault(name, {})[evaluator] = rate
    scores.tts_text_wer = _rate(word_errors(outcome.case.reference, outcome.text) for outcome in outcomes)
    targets = [cepstra(*_teacher_wave(outcome.case)) for outcome in outcomes]
    distances = [
        [
            distance_db(cepstra(wave, o.rate_hz), target)
            for wave, o, target in zip(waves, outcomes, targets, strict=True)
        ]
        for waves in ([outcome.wave for outcome in outcomes], at_once)
    ]
    scores.tts_distance_db, scores.one_shot_distance_db = (_finite_mean(values) for values in distances)
    for index, outcome in enumerate(outcomes):
        verdicts = {f"transcript_{name}": texts[index] for name, texts in transcripts.items()}
        records.append(
            _record(outcome, **verdicts, edits=errors["domain"][index].edits, distance_db=distances[0][index])
        )


def _score_answers(
    kind: str, outcomes: Sequence[Outcome], scores: Scores, records: list[dict[str, Any]], asr: AsrEvaluators
) -> None:
    if not outcomes:
        return
    written = [is_right(outcome.text, outcome.case.answers) for outcome in outcomes]
    setattr(scores, f"{kind}_to_text", _mean(written))
    if kind == "text":
        records += [_record(outcome, right=right) for outcome, right in zip(outcomes, written, strict=True)]
        return
    transcripts = list(asr.transcribe([(outcome.wave, outcome.rate_hz) for outcome in outcomes], "domain"))
    said = [_is_right(text, outcome.case, asr) for text, outcome in zip(transcripts, outcomes, strict=True)]
    setattr(scores, f"{kind}_to_speech", _mean(said))
    for outcome, text, right, spoken_right in zip(outcomes, transcripts, written, said, strict=True):
        records.append(_record(outcome, transcript_domain=text, right=right, right_spoken=spoken_right))
    if kind != "spoken":
        return
    for attribute in ("family", "held_out", "voice"):
        groups: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        for outcome, pair in zip(outcomes, zip(written, said, strict=True), strict=True):
            groups[getattr(outcome.case, attribute)].append(pair)
        table = {
            name: {
                "text": _mean(text for text, _ in pairs),
                "speech": _mean(sound for _, sound in pairs),
                "asked": len(pairs),
            }
            for name, pairs in sorted(groups.items())
        }
        setattr(scores, f"spoken_by_{attribute}", table)


def _score_speed(outcomes: Sequence[Outcome], scores: Scores) -> None:
    """Of the requests that are answered in speech: totals for the rates, medians for the times."""
    if not outcomes:
        return
    lm_ms, elapsed_ms = (sum(values) for values in zip(*((o.lm_ms, o.elapsed_ms) for o in outcomes), strict=True))
    tokens = sum(len(outcome.tokens) for outcome in outcomes)
    scores.lm_tokens_per_s = tokens / lm_ms * 1e3 if lm_ms else math.nan
    scores.tokens_per_s = tokens / elapsed_ms * 1e3
    first = [outcome.first_audio_ms for outcome in outcomes if outcome.first_audio_ms is not None]
    factors = [outcome.real_time_factor for outcome in outcomes if outcome.real_time_factor is not None]
    scores.first_audio_ms = float(np.median(first)) if first else math.nan
    scores.real_time_factor = float(np.median(factors)) if factors else math.nan


def _is_right(transcript: str, case: Case, asr: AsrEvaluators) -> bool:
    """By its transcript: words that sound alike are one."""
    return is_right(transcript, case.answers, asr.alike)


def _teacher_transcripts(cases: Sequence[Case], asr: AsrEvaluators, evaluator: str) -> list[str]:
    return list(asr.transcribe([_teacher_wave(case) for case in cases], evaluator))


def _teacher_wave(case: Case) -> tuple[Wave, int]:
    return read_wave(case.teacher) if case.teacher else (np.zeros(0, np.float32), 16_000)


def read_wave(path: Path) -> tuple[Wave, int]:
    """(float32 [samples], rate in Hz) of a mono sound file."""
    wave, rate_hz = soundfile.read(path, dtype="float32")
    return wave, rate_hz


def _record(outcome: Outcome, **verdicts: Any) -> dict[str, Any]:
    case = outcome.case
    return {
        "id": case.id,
        "kind": case.kind,
        "mode": outcome.mode,
        "family": case.family,
        "held_out": case.held_out,
        "voice": case.voice,
        "asked": case.question or case.text or "",
        "reference": case.reference,
        "text": outcome.text,
        "tokens": len(outcome.tokens),
        "reason": outcome.reason,
        **verdicts,
    }


def _rate(errors: Iterable[Errors]) -> float:
    return sum(errors, NO_ERRORS).rate


def _mean(values: Iterable[bool]) -> float:
    return float(np.mean(list(values)))


def _rates(pairs: Iterable[tuple[str, Errors]]) -> dict[str, float]:
    """Error rates by name."""
    totals: dict[str, Errors] = defaultdict(lambda: NO_ERRORS)
    for name, errors in pairs:
        totals[name] += errors
    return {name: errors.rate for name, errors in totals.items()}


def _finite_mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
