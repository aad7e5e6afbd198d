"""Histories: what a client joined is read into turns, cut, closed and shortened, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.contract.errors import InvalidRequest
from vita_audio.text.chat_template import ChatTemplate, ContinuousSpeech, PromptBuilder, Turn
from vita_audio.text.history import KEPT_SHARE, HistoryReader
from vita_audio.text.tokenizer import TextTokenizer

RATIO = (4, 10)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, merges=300, audio_codes=32, seed=0)
    return TextTokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def template(tokenizer: TextTokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


@pytest.fixture(scope="module")
def reader(template: ChatTemplate, tokenizer: TextTokenizer) -> HistoryReader:
    return HistoryReader(template, tokenizer.vocabulary)


def answer(template: ChatTemplate, text: str, codes: Sequence[int]) -> list[int]:
    return template.content([text, codes], RATIO) if codes else template.content([text])


def joined(turns: Sequence[object]) -> list[int]:
    return [token for turn in turns for token in turn.ids]  # type: ignore[attr-defined]


_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
_CODES = st.lists(st.integers(0, 31), max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    system=st.none() | _TEXT,
    said=st.lists(st.tuples(_TEXT, _TEXT, _CODES), min_size=1, max_size=4),
    data=st.data(),
)
def test_what_a_client_joined_is_the_conversation(
    template: ChatTemplate,
    reader: HistoryReader,
    tokenizer: TextTokenizer,
    system: str | None,
    said: list[tuple[str, str, list[int]]],
    data: st.DataObject,
) -> None:
    """Whatever part of its end the last answer has: the turns are those that were written, and reading is stable."""
    turns = [] if system is None else [Turn("system", template.content([system]))]
    for asked, answered, codes in said:
        turns += [Turn("user", template.content([asked])), Turn("assistant", answer(template, answered, codes))]
    whole, _ = template.conversation(turns)
    missing = data.draw(st.integers(0, len(template.closing)))
    read = reader.read(whole[: len(whole) - missing])
    assert joined(read) == whole
    assert [(turn.role, list(turn.content)) for turn in read] == [(turn.role, list(turn.content)) for turn in turns]
    assert reader.shorten(read, len(whole)) == read


@settings(max_examples=60, deadline=None)
@given(text=_TEXT, codes=st.lists(st.integers(0, 31), min_size=1, max_size=40), heard=st.integers(0, 45))
def test_an_answer_is_cut_to_what_was_heard(
    template: ChatTemplate, reader: HistoryReader, tokenizer: TextTokenizer, text: str, codes: list[int], heard: int
) -> None:
    vocabulary = tokenizer.vocabulary
    content = answer(template, text, codes)
    asked = Turn("user", template.content(["Well?"]))
    whole, _ = template.conversation([asked, Turn("assistant", content)])
    cut = list(reader.read(whole, heard)[-1].content)
    if heard >= len(codes):
        assert cut == content
        return
    sound = [code for token in cut if (code := vocabulary.audio_code(token)) is not None]
    assert sound == codes[:heard]
    assert cut.count(vocabulary.begin_of_audio) == cut.count(vocabulary.end_of_audio)
    if heard == 0:
        assert cut == []
    else:
        assert cut[-1] == vocabulary.end_of_audio
        assert cut[:-1] == content[: len(cut) - 1]  # text and sound stay interleaved as they were, up to the cut


def test_a_run_of_sound_that_was_broken_off_is_closed(
    template: ChatTemplate, reader: HistoryReader, tokenizer: TextTokenizer
) -> None:
    vocabulary = tokenizer.vocabulary
    prompt = PromptBuilder(tokenizer).build("chat", "Hello.")
    begin, end, sound = vocabulary.begin_of_audio, vocabulary.end_of_audio, vocabulary.audio_ids([3, 4])
    for tokens, content in (
        ([5, begin, *sound], (5, begin, *sound, end)),
        ([5, begin], (5,)),
        ([5, begin, *sound, end], (5, begin, *sound, end)),
        ([], ()),
        ([5, vocabulary.end_of_text], (5,)),
        ([5, vocabulary.im_end], (5,)),
    ):
        turns = reader.read([*prompt, *tokens])
        assert turns[-1].content == content
        assert joined(turns)[-len(template.closing) :] == template.closing


def test_the_next_prompt_begins_with_all_that_was_read_and_generated(
    reader: HistoryReader, tokenizer: TextTokenizer
) -> None:
    builder, vocabulary = PromptBuilder(tokenizer), tokenizer.vocabulary
    prompt = builder.build("chat", "Hello.", system="You are Ada.")
    history = [*prompt, 5, 6, vocabulary.im_end]
    following = builder.build("chat", "And then?", past=joined(reader.read(history)))
    assert following[: len(history)] == history
    assert following.count(vocabulary.im_start) == 5
    assert "You are Ada." in tokenizer.decode(prompt)


@pytest.mark.parametrize("codes", [None, [1, 2, 3]])
def test_a_turn_that_goes_on_is_read_as_far_as_it_is_sure(tokenizer: TextTokenizer, codes: list[int] | None) -> None:
    builder = PromptBuilder(tokenizer)
    begun = builder.begin("chat", None if codes else "Hello the", codes)
    whole = builder.build("chat", None if codes else "Hello there", [*codes, 4] if codes else None)
    assert whole[: len(begun)] == begun
    assert len(whole) - len(begun) < 14


def test_the_oldest_exchanges_are_dropped_and_the_system_turn_stays(
    template: ChatTemplate, reader: HistoryReader
) -> None:
    turns = [Turn("system", template.content(["Be kind."]))]
    for number in range(6):
        turns += [Turn("user", template.content([f"Question {number}?"])), Turn("assistant", [number] * 10)]
    read = reader.read(template.conversation(turns)[0])
    length = len(joined(read))
    kept = reader.shorten(read, length - 1)
    assert kept[0] == read[0]
    assert kept[1:] == read[len(read) - len(kept) + 1 :]
    assert kept[1].role == "user"
    longest = int((length - 1) * KEPT_SHARE)
    exchange = len(joined(read[1:3]))
    assert longest - exchange < len(joined(kept)) <= longest
    assert reader.shorten(read, len(read[0].ids) + 3) == read[:1]
    assert reader.shorten(read[1:], 3) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda ids, v: [], "ends with a turn with nothing"),
        (lambda ids, v: ids[1:], "no turn begins at id 0"),
        (lambda ids, v: [v.tokens + 7, *ids], "no turn begins at id 0"),
        (lambda ids, v: [*ids[:8], v.im_start, *ids[8:]], "stands in no turn"),
        (lambda ids, v: [*ids[:8], v.audio_placeholder, *ids[8:]], "stands in no turn"),
        (lambda ids, v: [*ids[:8], v.tokens, *ids[8:]], "stands in no turn"),
        (lambda ids, v: [*ids[:8], -1, *ids[8:]], "stands in no turn"),
        (lambda ids, v: ids[: ids.index(v.im_end) - 1], "ends within a turn of system"),
        (lambda ids, v: [*ids[: ids.index(v.im_end) + 1], 5, *ids[ids.index(v.im_end) + 2 :]], "does not end"),
        (lambda ids, v: [*ids, v.im_end, ids[ids.index(v.im_end) + 1], *ids], "a second system turn"),
        (lambda ids, v: ids[: len(ids) - 1 - ids[::-1].index(v.im_start)], "ends with a turn of user"),
    ],
)
def test_what_is_no_history_is_refused_with_its_place(
    reader: HistoryReader, tokenizer: TextTokenizer, spoil: object, words: str
) -> None:
    vocabulary = tokenizer.vocabulary
    history = [*PromptBuilder(tokenizer).build("chat", "Hello there."), 5, 6]
    with pytest.raises(InvalidRequest, match=words) as caught:
        reader.read(spoil(history, vocabulary))  # type: ignore[operator]
    assert caught.value.field == "HISTORY"
    assert "PROMPT and TOKENS" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(-5, 700), max_size=40))
def test_ids_at_random_are_refused(reader: HistoryReader, ids: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="HISTORY"):
        reader.read(ids)


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("plus")
    write_tokenizer(folder, merges=300, audio_codes=32, seed=0, plus=True)
    return TextTokenizer(folder / "tokenizer.json")


def spoken(tokenizer: TextTokenizer, *rows: int) -> tuple[list[int], ChatTemplate]:
    """A conversation of a Plus checkpoint: a clip of so many places in each turn of the user (0: typed)."""
    template, turns = ChatTemplate(tokenizer), []
    for count in rows:
        said = ContinuousSpeech(count) if count else "Hello."
        turns += [Turn("user", template.content([said])), Turn("assistant", template.content(["Yes.", [1, 2]]))]
    return template.conversation(turns)[0], template


def test_places_of_speech_are_counted_in_each_turn(plus: TextTokenizer) -> None:
    ids, template = spoken(plus, 5, 0, 7)
    turns = HistoryReader(template, plus.vocabulary).read(ids)
    assert [turn.clip_rows for turn in turns] == [5, 0, 0, 0, 7, 0]
    assert [token for turn in turns for token in turn.ids] == ids
    kept = HistoryReader(template, plus.vocabulary).shorten(turns, len(ids) - 1)
    assert [turn.clip_rows for turn in kept if turn.role == "user"] == [0, 7]


def test_speech_where_none_can_be_is_refused(plus: TextTokenizer) -> None:
    ids, template = spoken(plus, 5)
    v, reader = plus.vocabulary, HistoryReader(template, plus.vocabulary)
    assert v.context_of_audio is not None
    begin, end = ids.index(v.begin_of_audio), ids.index(v.end_of_audio)
    clip = ids[begin : end + 1]
    for wrong, words in (
        ([*ids[:begin], *clip, *ids[begin:]], "has 2 clips of speech, and a turn has at most one"),
        ([*ids[:begin], *ids[begin + 1 :]], "is not between its tags"),
        ([*ids[:end], *ids[end + 1 :]], "is not between its tags"),
        ([*ids[:-3], v.context_of_audio, *ids[-3:]], "stands in no turn"),
    ):
        with pytest.raises(InvalidRequest, match=words) as caught:
            reader.read(wrong)
        assert caught.value.field == "HISTORY"
