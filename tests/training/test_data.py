"""The generated data: texts, families and splits; and the sounds, where flite is installed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from training.config import load_config
from training.data.answers import is_right, words_of
from training.data.families import questions
from training.data.generate import run
from training.data.lexicon import number_words, plural, with_article
from training.data.manifest import read_chat, read_speech
from training.data.plan import plan
from training.data.questions import FAMILIES, split_questions
from training.data.sentences import sentences
from training.data.settings import DataConfig
from training.data.teacher import Clip, make, say
from training.errors import TrainingError
from vita_audio.contract.fields import TASKS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.text.chat_template import AUDIO_PLACEHOLDER

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
TINY = load_config("tiny").data
CLIPS_FEW = replace(
    TINY, tts=2, asr=2, spoken_chat=3, typed_chat=1, text=1, asr_questions=1, tts_answers=1,
    test_tts=1, test_asr=1, test_spoken_chat=2, test_typed_chat=1, test_text=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed")
    folder = tmp_path_factory.mktemp("data")
    run(CLIPS_FEW, folder)
    return folder


def test_there_are_families_enough_and_thousands_of_questions() -> None:
    assert len(FAMILIES) >= 12
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    train, _ = split_questions(DataConfig())
    assert sum(len(pool.questions) for pool in train) > 5_000


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_answer_of_a_family_is_accepted_and_other_answers_are_not(family) -> None:  # type: ignore[no-untyped-def]
    answers = {fact.answer: fact.accepted for fact in family.facts}
    for answer, accepted in answers.items():
        assert is_right(answer, accepted)
    some = list(answers.items())[:20]
    for answer, accepted in some:
        for other, others in some:
            if others != accepted:
                assert not is_right(other, accepted), (answer, other)


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("Two plus three is five.", ["five"], True),
        ("two plus three is FIVE", ["five"], True),
        ("Five plus three is two.", ["five"], False),
        ("Three times seven is twenty one", ["twenty one"], True),
        ("Three times seven is one", ["twenty one"], False),
        ("Three, four, five.", ["^three four five"], True),
        ("Two, three, four, five.", ["^three four five"], False),
        ("", ["five"], False),
        ("Five.", [], False),
        ("Five.", [""], False),
    ],
)
def test_an_answer_is_right_when_its_end_is(answer: str, accepted: list[str], right: bool) -> None:
    assert is_right(answer, accepted) is right


def test_heard_answers_may_use_words_of_the_same_sound() -> None:
    assert not is_right("one plus one is to", ["two"])
    assert is_right("one plus one is to", ["two"], {"two": "to"})


def test_arithmetic_is_right() -> None:
    numbers = {number_words(n): n for n in range(101)}
    signs = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    checked = 0
    for family in FAMILIES:
        for fact in family.facts:
            words = fact.key.split()
            if len(words) == 3 and words[1] in signs:
                assert signs[words[1]](numbers[words[0]], numbers[words[2]]) == numbers[fact.accepted[0]]
                checked += 1
    assert checked > 300


def test_splits_share_no_text_and_hold_out_what_they_say() -> None:
    train, test = split_questions(DataConfig())
    trained = {question.text for pool in train for question in pool.questions}
    assert not trained & {question.text for pool in test for question in pool.questions}
    facts = {(pool.family.name, question.fact.key) for pool in train for question in pool.questions}
    for pool in test:
        for question in pool.questions:
            known = (pool.family.name, question.fact.key) in facts
            assert known is (pool.held_out != "fact")
            assert question.unseen_phrasing or pool.held_out != "phrasing"
    assert {pool.held_out for pool in test} == {"question", "phrasing", "fact"}


def test_the_plan_is_the_same_each_time_and_keeps_texts_apart() -> None:
    samples = [planned.sample for planned in plan(TINY)]
    assert samples == [planned.sample for planned in plan(TINY)]
    assert samples != [planned.sample for planned in plan(replace(TINY, seed=TINY.seed + 1))]
    texts = {split: {s.question or s.answer for s in samples if s.split == split} for split in ("train", "test")}
    assert not texts["train"] & texts["test"]
    counts = Counter(sample.task for sample in samples)
    assert set(counts) == set(TASKS)


def test_copies_come_last_and_change_nothing_else() -> None:
    plain, more = plan(TINY), plan(replace(TINY, copies=5))
    assert more[: len(plain)] == plain
    copies = [planned.sample for planned in more[len(plain) :]]
    assert len(copies) == 5
    for sample in copies:
        assert (sample.task, sample.split, sample.audios) == ("copy", "train", ())
        assert sample.messages[0]["content"].endswith("\n" + sample.messages[1]["content"])


def test_questions_are_read_aloud_by_the_output_voice_alone() -> None:
    samples = plan(replace(TINY, tts_questions=6))
    questions = {p.sample.question for p in samples if p.sample.split == "train" and p.sample.question}
    read_aloud = [p for p in samples if p.sample.task == "tts" and p.sample.answer in questions]
    assert len({p.sample.answer for p in read_aloud}) == len(read_aloud) == 6
    assert {p.sample.split for p in read_aloud} == {"train"}
    assert {(clip.voice, clip.take, clip.text) for p in read_aloud for clip in p.clips} == {
        (TINY.output_voice, 0, p.sample.answer) for p in read_aloud
    }
    two_epochs = plan(replace(TINY, epochs=2, spoken_chat=1500, tts_questions=1500))
    texts = [p.sample.answer for p in two_epochs if p.sample.task == "tts" and p.sample.answer.endswith("?")]
    assert len(set(texts)) == len(texts)


def test_a_larger_plan_has_the_same_test_split() -> None:
    def test_split(config: DataConfig) -> list[tuple[str, str]]:
        return [(s.task, s.question or s.answer) for s in (p.sample for p in plan(config)) if s.split == "test"]

    assert test_split(TINY) == test_split(replace(TINY, tts=60, asr=50, spoken_chat=90))


def test_another_epoch_keeps_the_samples_of_the_first_and_repeats_no_text_or_sound() -> None:
    once, twice = (plan(replace(TINY, epochs=epochs, copies=5)) for epochs in (1, 2))
    first, second = twice[: len(once)], twice[len(once) :]
    assert first == once
    wanted = {
        "asr": TINY.asr + TINY.asr_questions,
        "chat": TINY.spoken_chat + TINY.typed_chat,
        "text": TINY.text,
        "copy": 5,
    }
    found = Counter(s.sample.task for s in second)
    assert {task: found[task] for task in wanted} == wanted
    assert found["tts"] >= TINY.tts
    assert len({s.sample.id for s in twice}) == len(twice)
    for task in ("tts", "asr", "copy"):
        texts = [
            [s.sample.answer for s in part if s.sample.task == task and s.sample.family == "free"]
            for part in (first, second)
        ]
        assert texts[1]
        assert not set(texts[0]) & set(texts[1])
    heard = [{clip for s in part for clip in s.clips if clip.take} for part in (first, second)]
    assert not heard[0] & heard[1]
    alone = plan(replace(TINY, epochs=1, first_epoch=1, copies=5))
    assert [s for s in alone if s.sample.task != "tts" and s.sample.split == "train"] == [
        s for s in second if s.sample.task != "tts"
    ]


def test_messages_have_one_placeholder_for_each_sound() -> None:
    for planned in plan(TINY):
        sample = planned.sample
        content = "".join(message["content"] for message in sample.messages)
        assert content.count(AUDIO_PLACEHOLDER) == len(sample.audios) == len(planned.clips)
        assert sample.messages[-1]["role"] == "assistant"


def test_sentences_repeat_nothing_and_grow_from_the_same_start() -> None:
    longer = sentences(400, 5)
    assert len({text for text, _ in longer}) == 400
    assert sentences(100, 5) == longer[:100]
    assert {kind for _, kind in longer} == {"free", "template"}


@given(st.integers(0, 100))
def test_numbers_are_told_apart_by_their_words(value: int) -> None:
    assert number_words(value) not in {number_words(other) for other in range(101) if other != value}


@pytest.mark.parametrize("value", [-1, 101])
def test_numbers_outside_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        number_words(value)


def test_plurals_and_articles() -> None:
    assert [plural(noun) for noun in ("cat", "box", "cherry", "toy", "mouse", "bus", "potato")] == [
        "cats", "boxes", "cherries", "toys", "mice", "buses", "potatoes",
    ]  # fmt: skip
    assert [with_article(noun) for noun in ("apple", "dog", "milk", "France")] == [
        "an apple",
        "a dog",
        "milk",
        "France",
    ]


def test_every_wording_can_be_filled() -> None:
    for family in FAMILIES:
        for question in questions(family):
            assert "{" not in question.text
            assert words_of(question.text)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tts": -1}, "tts"),
        ({"held_out_facts": 0.9}, "held_out_facts"),
        ({"stretch": (1.2, 0.8)}, "stretch"),
        ({"output_voice": "nobody"}, "nobody"),
        ({"input_voices": ()}, "input_voices"),
        ({"processes": 0}, "processes"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_a_wrong_setting_is_named(fields: dict, named: str) -> None:
    with pytest.raises(TrainingError, match=named):
        DataConfig(**fields)


def test_manifests_and_sounds_fit_each_other(data: Path) -> None:
    speech, chat = read_speech(data), read_chat(data)
    by_path = {clip.audio: clip for clip in speech}
    assert len(by_path) == len({clip.id for clip in speech}) == len(speech)
    assert {audio for sample in chat for audio in sample.audios} == set(by_path)
    for clip in speech:
        wave, rate_hz = soundfile.read(data / clip.audio, dtype="float32")
        assert rate_hz == INPUT_SAMPLE_RATE_HZ
        assert wave.ndim == 1
        assert len(wave) / rate_hz == pytest.approx(clip.seconds, abs=1e-3)
        assert 0.01 < np.abs(wave).max() < 1.0
    for sample in chat:
        if sample.task in ("tts", "chat"):
            assert by_path[sample.audios[-1]].voice == CLIPS_FEW.output_voice
            assert by_path[sample.audios[-1]].text == sample.answer
        if sample.voice:
            assert by_path[sample.audios[0]].voice == sample.voice
            assert by_path[sample.audios[0]].text == (sample.question or sample.answer)
    assert read_chat(data, "test") == [sample for sample in chat if sample.split == "test"]
    listed = (data / "splits" / "test.txt").read_text().splitlines()
    assert {line.split("\t")[3] for line in listed} == {s.question or s.answer for s in chat if s.split == "test"}


def test_an_interrupted_run_goes_on_and_a_finished_one_does_nothing(data: Path) -> None:
    (data / "config.json").unlink()
    clip = data / read_speech(data)[0].audio
    before, others = clip.read_bytes(), {path: path.stat().st_mtime_ns for path in data.glob("audio/**/*.flac")}
    manifest = (data / "chat.jsonl").read_bytes()
    clip.unlink()
    run(CLIPS_FEW, data)
    assert clip.read_bytes() == before
    assert (data / "chat.jsonl").read_bytes() == manifest
    kept = {path: path.stat().st_mtime_ns for path in data.glob("audio/**/*.flac")}
    assert {path for path in kept if kept[path] != others[path]} == {clip}
    stamp = (data / "chat.jsonl").stat().st_mtime_ns
    run(CLIPS_FEW, data)
    assert (data / "chat.jsonl").stat().st_mtime_ns == stamp


@needs_flite
def test_processes_do_not_change_the_sounds(data: Path, tmp_path: Path) -> None:
    run(replace(CLIPS_FEW, processes=2), tmp_path)
    for clip in read_speech(tmp_path):
        assert (tmp_path / clip.audio).read_bytes() == (data / clip.audio).read_bytes()


@needs_flite
def test_takes_differ_in_speed_level_and_noise_but_repeat_exactly() -> None:
    clips = [Clip("rms", "The cat is in the garden.", take) for take in range(1, 9)]
    waves = [make(clip, TINY) for clip in clips]
    assert len({len(wave) for wave in waves}) > 4
    levels = [float(np.sqrt(np.mean(wave**2))) for wave in waves]
    assert max(levels) > 1.5 * min(levels)
    np.testing.assert_array_equal(waves[0], make(clips[0], TINY))
    assert clips[0].id(TINY) != clips[0].id(replace(TINY, snr_db=(10.0, 20.0)))


@needs_flite
def test_flite_says_letters_by_their_names() -> None:
    """ "A" in a list is the letter, at the beginning of a sentence the article."""
    np.testing.assert_array_equal(say("After A comes B.", "slt"), say("After ay comes B.", "slt"))
    assert len(say("A dog.", "slt")) != len(say("Ay dog.", "slt"))


@needs_flite
@pytest.mark.parametrize("text", ["", "..."])
def test_silence_is_an_error(text: str) -> None:
    with pytest.raises(TrainingError, match="flite"):
        say(text, "slt")


def test_without_flite_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(TrainingError, match="apt-get install flite"):
        run(CLIPS_FEW, tmp_path)


def test_a_broken_manifest_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"speech\.jsonl does not exist"):
        read_speech(tmp_path)
    (tmp_path / "chat.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(TrainingError, match="line 1"):
        read_chat(tmp_path)
    (tmp_path / "speech.jsonl").write_text(json.dumps(["no"]) + "\n")
    with pytest.raises(TrainingError, match="line 1"):
        read_speech(tmp_path)


@needs_flite
def test_a_full_disk_leaves_no_half_written_sound(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(TrainingError, match="No space left"):
        run(CLIPS_FEW, tmp_path)
    assert not list(tmp_path.glob("audio/**/*.*"))
    assert not (tmp_path / "config.json").exists()
