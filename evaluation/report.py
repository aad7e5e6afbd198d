"""The evaluation as Markdown, JSON and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.picture import Panel, Point, draw
from evaluation.scores import Scores, TeacherScores
from evaluation.thresholds import Threshold, thresholds

REPORT, FIGURES, PICTURE = "evaluation.md", "evaluation.json", "quality_speed.svg"


def write_report(folder: Path, scores: Sequence[Scores], teacher: TeacherScores, about: Mapping[str, Any]) -> None:
    """Write the three files into `folder`. `about`: command, machine, date, counts; shown and stored as they are.

    Raises:
        EvaluationError: a file could not be written.
    """
    models = list(dict.fromkeys(row.label for row in scores))
    by_model = {model: {row.mode: row for row in scores if row.label == model} for model in models}
    held = {model: thresholds(rows, teacher) for model, rows in by_model.items()}
    figures = {
        "about": dict(about),
        "teacher": asdict(teacher),
        "scores": [row.to_dict() for row in scores],
        "thresholds": {
            model: [{**asdict(threshold), "passed": threshold.passed} for threshold in found]
            for model, found in held.items()
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(markdown(scores, teacher, held, about), encoding="utf-8")
        (folder / FIGURES).write_text(json.dumps(_plain(figures), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / PICTURE).write_text(quality_against_speed(scores, teacher), encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{folder}: the report could not be written: {error}") from error


def markdown(
    scores: Sequence[Scores], teacher: TeacherScores, held: Mapping[str, Sequence[Threshold]], about: Mapping[str, Any]
) -> str:
    """The report's text."""
    parts = ["# Evaluation\n", *(f"- {name}: {value}" for name, value in about.items()), "", f"![]({PICTURE})", ""]
    vanilla = {row.label: row.lm_tokens_per_s for row in scores if row.mode == "vanilla"}
    parts += _table(
        "Quality and speed",
        "model|mode|ASR WER|TTS WER domain|TTS WER flat|S->T|S->S|typed->T|typed->S|text->T|MCD dB|LM tokens/s|"
        "to vanilla|tokens/s|TTFA ms|RTF|cut off",
        [
            [
                row.label, row.mode, _share(row.asr_wer), _share(row.tts_wer.get("domain")),
                _share(row.tts_wer.get("flat")), _share(row.spoken_to_text), _share(row.spoken_to_speech),
                _share(row.typed_to_text), _share(row.typed_to_speech), _share(row.text_to_text),
                _number(row.tts_distance_db, 2), _number(row.lm_tokens_per_s, 0),
                _number(row.lm_tokens_per_s / vanilla.get(row.label, math.nan), 2), _number(row.tokens_per_s, 0),
                _number(row.first_audio_ms, 0), _number(row.real_time_factor, 3), f"{row.cut_off}/{row.requests}",
            ]
            for row in scores
        ]
        + [
            [row.label, "codec", "-", _share(row.codec_wer["domain"]), _share(row.codec_wer["flat"]), *["-"] * 12]
            for row in {row.label: row for row in scores if row.codec_wer}.values()
        ]
        + [
            ["teacher", "-", "-", _share(teacher.tts.get("domain")), _share(teacher.tts.get("flat")), "-",
             _share(teacher.spoken), "-", _share(teacher.typed), *["-"] * 8]
        ],
    )  # fmt: skip
    parts.append(
        "TTS WER and ->S are judged by pocketsphinx (domain: bigrams of the training text; flat: all words of the "
        "lexicon equally likely; words that sound alike are equal); the teacher's row is of the "
        "teacher's own sound of the same texts, the codec's row of that sound after speech tokenizer and decoder, "
        "without a language model. LM tokens/s: the language model alone; tokens/s: seen by the client. "
        "Speed is over the requests answered in speech, one at a time.\n"
    )
    parts += _table(
        "Streamed and one-shot decode of the same tokens (TTS, domain evaluator)",
        "model|mode|streamed WER|one-shot WER|streamed MCD dB|one-shot MCD dB|text beside the speech WER",
        [
            [
                row.label, row.mode, _share(row.tts_wer.get("domain")), _share(row.one_shot_wer),
                _number(row.tts_distance_db, 2), _number(row.one_shot_distance_db, 2), _share(row.tts_text_wer),
            ]
            for row in scores
        ],
    )  # fmt: skip
    for model, found in held.items():
        rows = [
            [
                threshold.name,
                _share(threshold.value),
                f"{'at least' if threshold.at_least else 'at most'} {_share(threshold.limit)}",
                "pass" if threshold.passed else "MISSED",
            ]
            for threshold in found
        ]
        parts += _table(f"Acceptance thresholds: {model}", "threshold|measured|limit|", rows)
    for title, attribute in (
        ("Spoken questions by family", "spoken_by_family"),
        ("Spoken questions by what was held out", "spoken_by_held_out"),
        ("Spoken questions by the asking voice", "spoken_by_voice"),
    ):
        parts += _breakdown(title, scores, attribute)
    parts += _dialogues(scores)
    return "\n".join(parts) + "\n"


def quality_against_speed(scores: Sequence[Scores], teacher: TeacherScores) -> str:
    """The picture: TTS error and spoken answers against the language model's tokens/s."""
    several = len({row.label for row in scores}) > 1

    def points(height: Callable[[Scores], float]) -> tuple[Point, ...]:
        return tuple(
            Point(f"{row.label} {row.mode}" if several else row.mode, row.mode, row.lm_tokens_per_s, 100 * height(row))
            for row in scores
        )

    panels = [
        Panel(
            "Speech: errors",
            "TTS WER, domain evaluator, %",
            points(lambda row: row.tts_wer.get("domain", math.nan)),
            100 * teacher.tts.get("domain", math.nan),
            "teacher",
        ),
        Panel(
            "Spoken answers",
            "spoken question to speech, % right",
            points(lambda row: row.spoken_to_speech),
            100 * teacher.spoken,
            "teacher",
        ),
    ]
    return draw(panels, "language model, tokens/s")


def _breakdown(title: str, scores: Sequence[Scores], attribute: str) -> list[str]:
    """Text and speech accuracy of each group, a pair of columns for each model and mode."""
    groups = sorted({group for row in scores for group in getattr(row, attribute)})
    if not groups:
        return []
    rows = []
    for group in groups:
        cells = [getattr(row, attribute).get(group, {}) for row in scores]
        shown = [f"{_share(cell.get('text'))} / {_share(cell.get('speech'))}" for cell in cells]
        rows.append([group or "-", str(max(int(cell.get("asked", 0)) for cell in cells)), *shown])
    return _table(
        f"{title} (S->T / S->S)", "|".join(["", "asked", *(f"{row.label} {row.mode}" for row in scores)]), rows
    )


def _dialogues(scores: Sequence[Scores]) -> list[str]:
    """Right answers of dialogues, judged as text: by depth, and those that need the turns before."""
    rows = []
    for group in dict.fromkeys(group for row in scores for group in row.dialogues):
        cells = [row.dialogues.get(group, {}) for row in scores]
        shown = [_share(cell.get("right")) for cell in cells]
        rows.append([group, str(max(int(cell.get("asked", 0)) for cell in cells)), *shown])
    columns = "|".join(["", "asked", *(f"{row.label} {row.mode}" for row in scores)])
    return _table("Dialogues (text of the answers)", columns, rows) if rows else []


def _table(title: str, columns: str, rows: Sequence[Sequence[str]]) -> list[str]:
    names = columns.split("|")
    lines = [f"## {title}\n", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _plain(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
