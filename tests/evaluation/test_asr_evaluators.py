"""The ASR evaluators: word errors, language models, transcripts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.asr_evaluators import (
    AsrEvaluators,
    Errors,
    pronunciations,
    sound_alikes,
    word_errors,
    write_bigrams,
    write_flat,
)
from evaluation.errors import EvaluationError
from training.data.teacher import say

WORDS = ["a", "b", "cat", "dog", "for", "four", "is", "no", "one", "plus", "the", "three", "to", "two", "yes"]
TEXTS = ["The cat is a dog.", "One plus two is three.", "Yes, the dog is the cat.", "No."] * 5


@pytest.fixture(autouse=True, scope="module")
def _pocketsphinx() -> None:
    pytest.importorskip("pocketsphinx")


@pytest.mark.parametrize(
    ("reference", "transcript", "edits"),
    [
        ("the cat is small", "the cat is small", 0),
        ("The cat is small.", "the CAT is small", 0),
        ("the cat is small", "the hat is small", 1),
        ("the cat is small", "the cat is", 1),
        ("the cat is small", "the the cat is not small", 2),
        ("twenty-one", "twenty one", 0),
        ("the cat", "", 2),
        ("", "a dog", 2),
    ],
)
def test_word_errors(reference: str, transcript: str, edits: int) -> None:
    assert word_errors(reference, transcript).edits == edits


words = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


@given(words, words, words)
def test_word_errors_are_a_distance(first: str, second: str, third: str) -> None:
    def distance(a: str, b: str) -> int:
        return word_errors(a, b).edits

    assert distance(first, second) == distance(second, first)
    assert distance(first, first) == 0
    assert distance(first, third) <= distance(first, second) + distance(second, third)
    assert abs(len(first.split()) - len(second.split())) <= distance(first, second)


def test_rates_add_up() -> None:
    assert (Errors(1, 4) + Errors(2, 6)).rate == pytest.approx(0.3)
    assert math.isnan(Errors(0, 0).rate)


def test_words_that_sound_alike_are_one_word() -> None:
    alike = sound_alikes(pronunciations(WORDS))
    assert alike["two"] == alike["to"]
    assert alike["for"] == alike["four"]
    assert alike["cat"] == "cat"
    assert word_errors("two cats", "to cats", alike).edits == 0
    assert word_errors("two cats", "to cats").edits == 1


def test_a_word_the_dictionary_lacks_is_named() -> None:
    with pytest.raises(EvaluationError, match="qwxzzy"):
        pronunciations(["cat", "qwxzzy"])


def _read_arpa(path: Path) -> list[dict[tuple[str, ...], tuple[float, float]]]:
    """Per order: words -> (log10 probability, log10 back-off)."""
    orders: list[dict[tuple[str, ...], tuple[float, float]]] = []
    for line in path.read_text().splitlines():
        if line.endswith("-grams:"):
            orders.append({})
        elif orders and line and not line.startswith("\\"):
            parts = line.split()
            n = len(orders)
            backoff = float(parts[n + 1]) if len(parts) > n + 1 else 0.0
            orders[-1][tuple(parts[1 : n + 1])] = (float(parts[0]), backoff)
    return orders


def test_the_domain_model_is_a_probability(tmp_path: Path) -> None:
    write_bigrams(TEXTS, WORDS, tmp_path / "domain.lm")
    unigrams, bigrams = _read_arpa(tmp_path / "domain.lm")
    after = [*WORDS, "</s>"]
    assert sum(10 ** unigrams[(word,)][0] for word in after) == pytest.approx(1.0, abs=0.01)
    for left in ["<s>", *WORDS]:
        total = sum(
            10
            ** (bigrams[left, right][0] if (left, right) in bigrams else unigrams[(left,)][1] + unigrams[(right,)][0])
            for right in after
        )
        assert total == pytest.approx(1.0, abs=0.01)
    assert bigrams["the", "cat"][0] > unigrams[("cat",)][0]


def test_the_flat_model_takes_all_words_for_equally_likely(tmp_path: Path) -> None:
    write_flat(WORDS, tmp_path / "flat.lm")
    (unigrams,) = _read_arpa(tmp_path / "flat.lm")
    assert {unigrams[(word,)][0] for word in [*WORDS, "</s>"]} == {unigrams[("cat",)][0]}
    assert 10 ** unigrams[("cat",)][0] * (len(WORDS) + 1) == pytest.approx(1.0, abs=0.01)


@pytest.mark.skipif("helpers" in (shutil.which("flite") or "helpers"), reason="flite is not installed")
def test_the_evaluators_transcribe_the_teacher_and_not_noise() -> None:
    texts = ["The cat is a dog.", "One plus two is three."]
    waves = [(say(text, "rms"), 16_000) for text in texts]
    noise = (np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1, 16_000)
    with AsrEvaluators(TEXTS, WORDS, processes=1) as asr:
        heard = list(asr.transcribe([*waves, noise, waves[0], (np.zeros(0, np.float32), 16_000)], "domain"))
        flat = list(asr.transcribe(waves, "flat"))
    assert sum((asr.errors(*pair) for pair in zip(texts, heard, strict=False)), Errors(0, 0)).rate < 0.2
    assert heard[3] == heard[0]  # whatever came in between
    assert heard[4] == ""
    assert sum((asr.errors(*pair) for pair in zip(texts, flat, strict=True)), Errors(0, 0)).rate < 0.5
