"""Dialogues: turns that need those before, a split by what they are about, one voice and one history a sample."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from training.config import load_config
from training.data.answers import is_right, words_of
from training.data.dialogues import MOST_TURNS, NOTHING_HEARD, SILENCE, Exchange, dialogues
from training.data.lexicon import number_words
from training.data.manifest import ChatSample
from training.data.plan import PlannedSample, plan
from training.data.questions import draw_questions, split_questions
from training.data.teacher import Clip, make
from training.errors import TrainingError
from vita_audio.speech_pauses import is_silent

TINY = load_config("tiny").data
CONFIG = replace(
    TINY, spoken_dialogues=60, typed_dialogues=20, text_dialogues=60, asr_dialogues=7, tts_long=9,
    test_spoken_dialogues=20, test_text_dialogues=20, test_tts_long=3,
)  # fmt: skip
# The real numbers of dialogues and long texts; what they do not depend on is left out.
SMALL = replace(
    load_config("small").data, epochs=1, tts=0, asr=0, spoken_chat=0, typed_chat=0, text=0, asr_questions=0,
    tts_answers=0, tts_questions=0, copies=0, asr_dialogues=0,
)  # fmt: skip
#: How a turn begins that states what is asked for later.
STATED = ("My name is", "I am ", "Hello, my name is", "I have ", "I like ", "My colour is")
VALUES = {number_words(value): value for value in range(101)}


@pytest.fixture(scope="module")
def planned() -> list[PlannedSample]:
    return [found for found in plan(CONFIG) if found.sample.task == "dialogue"]


@pytest.fixture(scope="module")
def small() -> list[ChatSample]:
    return [found.sample for found in plan(SMALL)]


@pytest.fixture(scope="module")
def talks() -> list[tuple[Exchange, ...]]:
    single = draw_questions(split_questions(TINY)[0], 3000, "single")
    return list(dialogues(400, "talks", single, lambda thread: True, spoken=True))


def test_dialogues_have_two_to_five_turns_and_most_need_the_turns_before(talks: list[tuple[Exchange, ...]]) -> None:
    lengths = Counter(map(len, talks))
    assert set(lengths) == set(range(2, MOST_TURNS + 1))
    assert not any(talk[0].memory for talk in talks)
    assert sum(any(turn.memory for turn in talk) for talk in talks) > 0.9 * len(talks)
    assert len(set(talks)) > 0.95 * len(talks)
    for turn in (turn for talk in talks for turn in talk):
        assert is_right(turn.answer, turn.accepted)


def test_every_sum_goes_on_from_the_number_before(talks: list[tuple[Exchange, ...]]) -> None:
    checked = 0
    for talk in talks:
        for before, turn in itertools.pairwise(talk):
            if turn.asked.startswith(("And plus", "And minus", "Add ", "Take ", "Now ")) and turn.memory:
                last = " ".join(words_of(before.answer)).split(" is ")[1]
                a, sign, rest = (
                    turn.answer.rstrip(".").lower().partition(f" {'plus' if 'plus' in turn.answer else 'minus'} ")
                )
                b, result = rest.split(" is ")
                assert a == last
                assert VALUES[result] == VALUES[a] + (VALUES[b] if "plus" in sign else -VALUES[b])
                assert words_of(b)[0] in words_of(turn.asked)
                checked += 1
    assert checked > 50


def test_what_is_asked_for_later_was_stated_before(talks: list[tuple[Exchange, ...]]) -> None:
    names, apart = 0, 0
    for talk in talks:
        for at, turn in enumerate(talk):
            if turn.answer.startswith("Your name is"):
                (name,) = turn.accepted
                stated = [n for n, before in enumerate(talk[:at]) if name in before.asked]
                assert stated
                names, apart = names + 1, apart + (at - stated[0] > 1)
    assert names > 30
    assert apart > 10, "other topics come between"


def test_silence_is_answered_and_only_who_speaks_is_silent(
    talks: list[tuple[Exchange, ...]], planned: list[PlannedSample]
) -> None:
    silent = [turn for talk in talks for turn in talk if turn.asked == SILENCE]
    assert silent
    assert {turn.answer for turn in silent} == {NOTHING_HEARD}
    for found in planned:
        assert found.sample.voice or all(turn["asked"] for turn in found.sample.turns)


def test_a_quiet_room_is_noise_that_the_server_takes() -> None:
    waves = [make(Clip("slt", SILENCE, take), TINY) for take in range(1, 30)]
    assert not any(is_silent(wave) for wave in waves)
    assert all(np.abs(wave).max() < 0.2 for wave in waves)
    assert len({len(wave) for wave in waves}) > 20
    np.testing.assert_array_equal(waves[0], make(Clip("slt", SILENCE, 1), TINY))


def test_a_sample_is_one_history_in_one_voice(planned: list[PlannedSample]) -> None:
    assert Counter((bool(f.sample.voice), bool(f.sample.audios)) for f in planned if f.sample.split == "train") == {
        (True, True): 60,
        (False, True): 20,
        (False, False): 60,
    }
    for found in planned:
        sample, roles = found.sample, [message["role"] for message in found.sample.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * len(sample.turns)
        assert (roles[0] == "system") == bool(sample.audios)
        assert {clip.voice for clip in found.clips if clip.take} <= {sample.voice}
        assert len(sample.audios) == (0 if not sample.audios else len(sample.turns) * (2 if sample.voice else 1))


def test_threads_of_the_test_are_never_trained(small: list[ChatSample]) -> None:
    def pairs(split: str) -> Iterator[tuple[str, str]]:
        """What is stated and how it is asked for; else what is gone on from and to, however it is asked."""
        for sample in small:
            for at, turn in enumerate(sample.turns if sample.split == split else ()):
                if not turn["memory"] or "again" in turn["asked"]:
                    continue
                if turn["answer"].startswith(("Your", "You ")):
                    stated = next(t for t in sample.turns[:at] if t["asked"].startswith(STATED))
                    yield stated["asked"], turn["asked"]
                else:
                    yield sample.turns[at - 1]["answer"], turn["answer"]

    assert len(set(pairs("test"))) > 150
    assert not set(pairs("train")) & set(pairs("test"))


def test_training_goes_on_in_every_way_that_the_test_does(small: list[ChatSample]) -> None:
    def ways(split: str) -> set[str]:
        turns = (turn for sample in small if sample.split == split for turn in sample.turns if turn["memory"])
        return {" ".join(word for word in turn["asked"].split() if word.strip("?.,") not in VALUES) for turn in turns}

    assert ways("test") <= ways("train")
    days = {
        turn["answer"] for s in small if s.split == "train" for turn in s.turns if turn["asked"] == "And after that?"
    }
    assert len(days) > 15


def test_no_dialogue_of_training_asks_or_states_what_questions_of_the_test_do(small: list[ChatSample]) -> None:
    _, test = split_questions(SMALL)
    asked = {question.text for pool in test for question in pool.questions}
    kept = [pool for pool in test if pool.held_out == "fact" and pool.family.name in ("addition", "subtraction")]
    stated = {question.fact.answer for pool in kept for question in pool.questions}
    assert len(stated) > 8
    turns = [turn for sample in small if sample.split == "train" for turn in sample.turns]
    assert len(turns) > 40_000
    assert not asked & {turn["asked"] for turn in turns}
    assert not stated & {turn["answer"] for turn in turns}


def test_long_texts_of_the_test_are_of_its_sentences_and_those_of_training_have_none(small: list[ChatSample]) -> None:
    kept = {sample.answer for sample in small if sample.split == "test" and sample.family == "template"}

    def parts(split: str) -> list[str]:
        texts = [sample.answer for sample in small if sample.split == split and sample.family == "long"]
        return [part for text in texts for part in re.split(r"(?<=[.?]) ", text)]

    assert len(parts("train")) > 4000
    assert len(parts("test")) > 80
    assert set(parts("test")) <= kept
    assert not set(parts("train")) & kept


def test_long_texts_of_the_test_need_sentences() -> None:
    with pytest.raises(TrainingError, match="test_tts_long"):
        plan(replace(TINY, test_tts=1, test_asr=1, test_tts_long=1))


def test_turns_and_texts_of_several_sentences_serve_other_tasks_too() -> None:
    found = plan(CONFIG)
    asr = [f.sample for f in found if f.sample.task == "asr" and f.sample.family == "dialogue"]
    asked = {turn["asked"] for f in found if f.sample.voice for turn in f.sample.turns}
    assert len(asr) == 7
    assert {sample.answer for sample in asr} <= asked - {SILENCE}
    long = [f.sample for f in found if f.sample.family == "long"]
    assert Counter(sample.split for sample in long) == {"train": 9, "test": 3}
    assert all(2 <= sum(sample.answer.count(end) for end in ".?") <= 3 for sample in long)


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_the_domain_has_no_word_without_a_pronunciation() -> None:
    pytest.importorskip("pocketsphinx")
    from evaluation.asr_evaluators import pronunciations

    words = {word for found in plan(CONFIG) for word in words_of(f"{found.sample.question} {found.sample.answer}")}
    assert pronunciations(words).keys() == words
