"""Spoken answers that are kept: for their key, for an hour, within bounds."""

from __future__ import annotations

import numpy as np
import pytest

from gateway import spoken_answers
from gateway.spoken_answers import KEPT_S, SpokenAnswer, SpokenAnswers


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def answer(answers: SpokenAnswers, ids: int = 3, key: str = "ada") -> SpokenAnswer:
    return SpokenAnswer(key, b"", np.zeros(ids, np.int32), "Yes.", answers.expiry())


def test_an_answer_is_found_by_its_own_key_until_it_expires() -> None:
    clock = Clock()
    answers = SpokenAnswers(clock)
    answers.keep("a", one := answer(answers))
    assert answers.find("a", "ada") is one
    assert answers.find("a", "bob") is None
    assert answers.find("b", "ada") is None
    clock.now_s += KEPT_S - 1
    assert answers.find("a", "ada") is one
    clock.now_s += 1
    assert answers.find("a", "ada") is None
    answers.keep("b", answer(answers))
    assert set(answers._answers) == {"b"}
    assert answers._bytes == 12


def test_the_oldest_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken_answers, "MAX_ANSWERS", 2)
    answers = SpokenAnswers(Clock())
    for name in "abc":
        answers.keep(name, answer(answers))
    assert [answers.find(name, "ada") is not None for name in "abc"] == [False, True, True]


def test_the_oldest_go_when_they_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken_answers, "MAX_BYTES", 40)
    answers = SpokenAnswers(Clock())
    for name, ids in (("a", 4), ("b", 4), ("c", 4), ("d", 11)):
        answers.keep(name, answer(answers, ids))
        assert answers._bytes <= 40
    assert not answers._answers  # the last one alone is too long
