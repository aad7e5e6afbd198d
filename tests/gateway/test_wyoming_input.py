"""Text that streams in, by sentences."""

from __future__ import annotations

from gateway.wyoming_input import Bounds, Sentences


def spoken(*pieces: str) -> list[str]:
    sentences = Sentences(Bounds())
    return [sentence for piece in pieces for sentence in sentences.add(piece)] + list(sentences.finish())


def test_sentences_come_whole_and_as_soon_as_they_are_complete() -> None:
    sentences = Sentences(Bounds())
    assert list(sentences.add("Good morn")) == []
    assert list(sentences.add("ing. How are")) == ["Good morning."]
    assert list(sentences.add(" you? It is 3.5 km")) == ["How are you?"]
    assert list(sentences.finish()) == ["It is 3.5 km"]
    assert list(sentences.finish()) == []


def test_marks_alone_are_not_spoken() -> None:
    assert spoken("... ", "!\n\n", "Hello.\n\n", "--- ", "\n\n* * *") == ["Hello."]
    assert spoken("你好。", "再见！") == ["你好。", "再见！"]


def test_text_without_an_end_is_spoken_in_parts_between_words() -> None:
    words = [f"w{index}" for index in range(400)]
    parts = spoken(*(f" {word}" for word in words))
    assert len(parts) > 2
    assert max(map(len, parts)) <= 500
    assert " ".join(parts).split() == words
    assert spoken(" ".join(words)) == parts


def test_a_word_without_an_end_is_cut() -> None:
    parts = spoken("a" * 1_700)
    assert "".join(parts) == "a" * 1_700
    assert max(map(len, parts)) <= 500
