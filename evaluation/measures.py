"""Scores of one answer: word errors of English, character errors of Chinese, right answers to questions.

Normalisation and alignment are those of packages, whose versions belong into a report (`used`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from evaluation.asr_evaluators import Errors


def used() -> str:
    """Packages and versions behind the scores."""
    return (
        f"jiwer {version('jiwer')}; whisper-normalizer {version('whisper-normalizer')}: English by Whisper's English "
        "normaliser, Chinese by its basic one with letters split (numerals stay as they are written)"
    )


def unit(language: str) -> str:
    """What the error rate of a language counts: "WER" or "CER"."""
    return "CER" if language == "zh" else "WER"


def normalise(text: str, language: str) -> str:
    """Words (English) or characters (Chinese), separated by spaces."""
    return " ".join(_normaliser(language)(text).split())


def errors(reference: str, answer: str, language: str) -> Errors:
    """Substitutions, deletions and insertions, the fewest, and the words or characters of the reference."""
    wanted, got = normalise(reference, language), normalise(answer, language)
    found = jiwer.process_words(wanted, got)
    return Errors(found.substitutions + found.deletions + found.insertions, len(wanted.split()))


def is_right(answer: str, accepted: Iterable[str], language: str) -> bool:
    """Whether the words of an accepted answer stand in a row somewhere in the answer, both normalised."""
    said = f" {normalise(answer, language)} "
    phrases = (normalise(phrase, language) for phrase in accepted)
    return any(phrase and f" {phrase} " in said for phrase in phrases)


@cache
def _normaliser(language: str) -> BasicTextNormalizer | EnglishTextNormalizer:
    return BasicTextNormalizer(split_letters=True) if language == "zh" else EnglishTextNormalizer()
