"""What the paper reports for the suites: NeurIPS 2025, arXiv 2505.03739. Error rates and accuracies in per cent.

Its judges of speech: Paraformer (Chinese), Whisper-large-v3 (English). How it matches answers to questions, and with
which normaliser it scores recognition, it does not say.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv 2505.03739"


@dataclass(frozen=True, slots=True)
class PaperRow:
    """`mode`: what the row's name says the model generates with."""

    model: str
    mode: str
    measure: str
    percent: float
    table: str


_ASR, _TTS, _QA = "ASR table", "TTS table", "Table 2"
_BASE = (("VITA-Audio-Turbo", "turbo"), ("VITA-Audio-Vanilla", "vanilla"))
_PLUS = (("VITA-Audio-Plus-Boost", "boost"), ("VITA-Audio-Plus-Vanilla", "vanilla"))
_SQA = (("VITA-Audio-Boost", "boost"), ("VITA-Audio-Vanilla", "vanilla"), *_PLUS)
_READ = (("VITA-Audio-Turbo (stage 4)", "turbo"), *_PLUS)


def _rows(models: tuple[tuple[str, str], ...], measure: str, table: str, *percents: float) -> tuple[PaperRow, ...]:
    pairs = zip(models, percents, strict=True)
    return tuple(PaperRow(model, mode, measure, percent, table) for (model, mode), percent in pairs)


def _qa(text: tuple[float, ...], speech: tuple[float, ...]) -> tuple[PaperRow, ...]:
    return _rows(_SQA, "S->T", _QA, *text) + _rows(_SQA, "S->S", _QA, *speech)


#: (suite, part) -> rows, in the paper's order.
ROWS: dict[tuple[str, str], tuple[PaperRow, ...]] = {
    ("librispeech", "test-clean"): _rows((*_BASE, *_PLUS), "ASR WER", _ASR, 6.29, 2.98, 3.13, 2.00),
    ("librispeech", "test-other"): _rows((*_BASE, *_PLUS), "ASR WER", _ASR, 12.86, 8.07, 7.07, 4.60),
    ("aishell", "test"): _rows((*_BASE, *_PLUS), "ASR CER", _ASR, 7.70, 4.46, 4.72, 1.94),
    ("wenetspeech", "test_meeting"): _rows((*_BASE, *_PLUS), "ASR CER", _ASR, 23.97, 17.34, 9.38, 7.12),
    ("wenetspeech", "test_net"): _rows((*_BASE, *_PLUS), "ASR CER", _ASR, 18.66, 13.45, 8.97, 6.90),
    ("fleurs", "zh"): _rows(_PLUS[1:], "ASR CER", _ASR, 3.69),
    ("fleurs", "en"): _rows(_PLUS[1:], "ASR WER", _ASR, 4.54),
    ("seed-tts", "zh"): _rows(_READ, "TTS CER", _TTS, 1.07, 1.32, 1.13),
    ("seed-tts", "en"): _rows(_READ, "TTS WER", _TTS, 2.26, 2.21, 1.85),
    ("seed-tts", "hard"): _rows(_READ, "TTS CER", _TTS, 10.08, 12.05, 10.21),
    ("libritts", "test-clean"): _rows(_READ, "TTS WER", _TTS, 2.08, 2.21, 1.89),
    ("llama-questions", "test"): _qa((68.7, 71.3, 76.3, 75.6), (60.3, 66.3, 64.6, 68.0)),
    ("trivia-qa", "test"): _qa((30.5, 31.9, 43.6, 45.9), (29.3, 30.1, 39.5, 42.7)),
    ("web-questions", "test"): _qa((32.9, 33.5, 44.2, 45.0), (30.4, 31.4, 40.0, 41.7)),
}
