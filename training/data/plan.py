"""Which samples a data folder holds: texts, prompts and the clips they need, decided before any sound is made."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from training.data.dialogues import MOST_TURNS, Exchange, Thread, dialogues
from training.data.families import Question
from training.data.manifest import ChatSample
from training.data.questions import QuestionPool, draw_questions, split_questions
from training.data.sentences import free_sentence, sentences, template_sentence
from training.data.settings import DataConfig
from training.data.teacher import Clip
from training.errors import TrainingError
from vita_audio.text.chat_template import AUDIO_PLACEHOLDER, task_turns

_TAKES_OF_AN_EPOCH = 1_000_000  # more than an epoch has: takes and numbers of epochs never meet
_MOST_SENTENCES = 3  # of a long text


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """A sample and the clips of its audio placeholders, in order."""

    sample: ChatSample
    clips: tuple[Clip, ...]


def plan(config: DataConfig) -> list[PlannedSample]:
    """All samples of both splits, in a fixed order; paths of the clips are in place."""
    test = _Plan(config, "test")
    samples = list(test.samples())
    read_aloud: set[str] = set()
    for number in range(config.first_epoch, config.first_epoch + config.epochs):
        samples += _Plan(config, "train", number, read_aloud, test.follow_ups).samples()
    return samples


class _Plan:
    """The samples of one split, of one epoch.

    Args:
        number: of the epoch. Each goes on in the lists of texts and questions where the one before ended.
        read_aloud: answers and questions that are TTS samples already; gains those of this epoch.
        follow_ups: `Thread.follow_ups` of the test's dialogues. The test split gains them, the train split has none.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        number: int = 0,
        read_aloud: set[str] | None = None,
        follow_ups: set[tuple[str, str]] | None = None,
    ) -> None:
        self.config, self.split, self.epoch = config, split, number
        self.read_aloud: set[str] = set() if read_aloud is None else read_aloud
        self.follow_ups: set[tuple[str, str]] = set() if follow_ups is None else follow_ups
        self.draw = random.Random(self._seed(f"{config.seed} {split}"))
        self.takes = number * _TAKES_OF_AN_EPOCH
        self.count = number * _TAKES_OF_AN_EPOCH

    def _seed(self, name: str) -> str:
        return f"{name} {self.epoch}" if self.epoch else name

    def samples(self) -> Iterator[PlannedSample]:
        config, test = self.config, self.split == "test"
        kept = config.test_tts + config.test_asr  # the first sentences are the test's, whatever the sizes
        tts, asr = (config.test_tts, config.test_asr) if test else (config.tts, config.asr)
        size = config.tts + config.asr
        texts = sentences(kept + (self.epoch + 1) * size, config.seed)
        held_out_texts = dict(texts[:kept])
        texts = texts[:kept] if test else texts[kept + self.epoch * size :]
        for text, kind in texts[:tts]:
            yield self._tts(text, kind)
        for text, kind in texts[tts : tts + asr]:
            yield self._asr(self._heard(text), kind)
        train_pools, test_pools = split_questions(config)
        held_out_of = {question.text: pool.held_out for pool in test_pools for question in pool.questions}

        def draw(name: str, test_count: int, train_count: int) -> Iterator[tuple[Question, str]]:
            pools, count = (test_pools, test_count) if test else (train_pools, train_count)
            drawn = draw_questions(pools, (self.epoch + 1) * count, f"{config.seed} {self.split} {name}")
            for question in islice(drawn, self.epoch * count, None):
                yield question, held_out_of[question.text] if test else ""

        spoken = []
        for question, held_out in draw("spoken", config.test_spoken_chat, config.spoken_chat):
            heard = self._heard(question.text)
            spoken.append((question, heard))
            yield self._chat(question, heard, held_out)
        for question, held_out in draw("typed", config.test_typed_chat, config.typed_chat):
            yield self._chat(question, None, held_out)
        for question, held_out in draw("text", config.test_text, config.text):
            yield self._text(question, held_out)
        turns: list[Clip] = []
        for planned in self._dialogues(train_pools, test_pools):
            turns += [clip for clip in planned.clips if clip.take and clip.text]
            yield planned
        yield from self._long(held_out_texts)
        if not test:
            for clip in turns[: config.asr_dialogues]:
                yield self._asr(clip, "dialogue")
            for question, heard in spoken[: config.asr_questions]:
                yield self._asr(heard, question.family)
            answers = [(question.fact.answer, question.family) for question, _ in spoken]
            yield from self._read_aloud(answers, config.tts_answers)
            asked = [(question.text, question.family) for question, _ in spoken]
            yield from self._read_aloud(asked, config.tts_questions)
            words = random.Random(self._seed(f"{config.seed} copies"))
            for _ in range(config.copies):
                yield self._copy(_new(free_sentence, words, held_out_texts))

    def _long(self, held_out: Mapping[str, str]) -> Iterator[PlannedSample]:
        """Texts of several sentences. `held_out`: sentences of the test and their kinds; it has no others here."""
        config, test = self.config, self.split == "test"
        draw = random.Random(self._seed(f"{config.seed} {self.split} long"))
        count = config.test_tts_long if test else config.tts_long
        own = [text for text, kind in held_out.items() if kind == "template"]
        if test and count and len(own) < _MOST_SENTENCES:
            raise TrainingError("data.test_tts_long: made of sentences of test_tts and test_asr, which are too few")
        for _ in range(count):
            size = draw.randint(2, _MOST_SENTENCES)
            parts = draw.sample(own, size) if test else [_new(template_sentence, draw, held_out) for _ in range(size)]
            yield self._tts(" ".join(parts), "long")

    def _dialogues(self, train_pools: list[QuestionPool], test_pools: list[QuestionPool]) -> Iterator[PlannedSample]:
        """Spoken and answered in speech, typed and answered in speech, typed and answered in writing."""
        config, test = self.config, self.split == "test"
        pools = test_pools if test else train_pools
        held_out_asked = {question.text for pool in test_pools for question in pool.questions}
        held_out_answers = _answers(p for p in test_pools if p.held_out == "fact") - _answers(train_pools)

        def may_use(thread: Thread) -> bool:
            held_out = random.Random(f"{config.seed} dialogue {thread.key}").random() < config.held_out_dialogues
            if test and held_out:
                self.follow_ups |= thread.follow_ups
            if test or held_out:
                return test and held_out
            # A key of training may still go on like a thread of the test, or ask or state what its questions ask.
            return thread.follow_ups.isdisjoint(self.follow_ups) and not any(
                exchange.asked in held_out_asked or exchange.answer in held_out_answers for exchange in thread.exchanges
            )

        for name, count, spoken, answered in (
            ("spoken", config.test_spoken_dialogues if test else config.spoken_dialogues, True, True),
            ("typed", 0 if test else config.typed_dialogues, False, True),
            ("text", config.test_text_dialogues if test else config.text_dialogues, False, False),
        ):
            seed = self._seed(f"{config.seed} {self.split} {name} dialogues")
            single = draw_questions(pools, MOST_TURNS * count, seed)
            for exchanges in dialogues(count, seed, single, may_use, spoken):
                yield self._dialogue(exchanges, spoken, answered)

    def _dialogue(self, exchanges: tuple[Exchange, ...], spoken: bool, answered: bool) -> PlannedSample:
        """`spoken`: the user speaks, in one voice; `answered`: in speech."""
        voice, clips = self.draw.choice(self.config.input_voices), list[Clip]()
        messages: list[dict[str, str]] = []
        for number, exchange in enumerate(exchanges):
            heard = self._heard(exchange.asked, voice) if spoken else None
            answer = exchange.answer + (AUDIO_PLACEHOLDER if answered else "")
            written = _messages("chat" if answered else "text", None if heard else exchange.asked, heard, answer)
            messages += [m for m in written if m["role"] != "system" or not number]
            clips += [*([heard] if heard else []), *([self._said(exchange.answer)] if answered else [])]
        return self._planned(
            "dialogue", "dialogue", tuple(messages), tuple(clips), held_out="thread",
            question=" ".join(exchange.asked for exchange in exchanges),
            answer=" ".join(exchange.answer for exchange in exchanges),
            turns=tuple(asdict(exchange) for exchange in exchanges),
        )  # fmt: skip

    def _read_aloud(self, texts: Iterable[tuple[str, str]], count: int) -> Iterator[PlannedSample]:
        """TTS samples of the first `count` (text, family) that no epoch has had."""
        new = [text for text in dict.fromkeys(texts) if text[0] not in self.read_aloud]
        for text, family in new[:count]:
            self.read_aloud.add(text)
            yield self._tts(text, family)

    def _heard(self, text: str, voice: str | None = None) -> Clip:
        """A user's voice; None: any."""
        self.takes += 1
        return Clip(voice or self.draw.choice(self.config.input_voices), text, self.takes)

    def _said(self, text: str) -> Clip:
        """The voice of the answers: always the same sound for the same text."""
        return Clip(self.config.output_voice, text, 0)

    def _tts(self, text: str, family: str) -> PlannedSample:
        messages = _messages("tts", text, None, text + AUDIO_PLACEHOLDER)
        return self._planned("tts", family, messages, (self._said(text),), answer=text, held_out="sentence")

    def _asr(self, heard: Clip, family: str) -> PlannedSample:
        messages = _messages("asr", None, heard, heard.text)
        return self._planned("asr", family, messages, (heard,), answer=heard.text, held_out="sentence")

    def _copy(self, text: str) -> PlannedSample:
        messages = _messages("text", f"Repeat.\n{text}", None, text)
        return self._planned("copy", "free", messages, (), answer=text, held_out="sentence")

    def _chat(self, question: Question, heard: Clip | None, held_out: str) -> PlannedSample:
        answer = question.fact.answer
        messages = _messages("chat", None if heard else question.text, heard, answer + AUDIO_PLACEHOLDER)
        clips = (*([heard] if heard else []), self._said(answer))
        return self._asked("chat", question, messages, clips, held_out)

    def _text(self, question: Question, held_out: str) -> PlannedSample:
        messages = _messages("text", question.text, None, question.fact.answer)
        return self._asked("text", question, messages, (), held_out)

    def _asked(
        self,
        task: str,
        question: Question,
        messages: tuple[dict[str, str], ...],
        clips: tuple[Clip, ...],
        held_out: str,
    ) -> PlannedSample:
        fact = question.fact
        return self._planned(
            task, question.family, messages, clips, question=question.text, answer=fact.answer, accepted=fact.accepted,
            fact=fact.key, held_out=held_out,
        )  # fmt: skip

    def _planned(
        self,
        task: str,
        family: str,
        messages: tuple[dict[str, str], ...],
        clips: tuple[Clip, ...],
        held_out: str,
        **fields: str | tuple[Any, ...],
    ) -> PlannedSample:
        self.count += 1
        heard = [clip.voice for clip in clips if clip.take]
        sample = ChatSample(
            id=f"{self.split}-{task}-{self.count:06d}",
            task=task,
            family=family,
            split=self.split,
            messages=messages,
            audios=tuple(clip.path(self.config) for clip in clips),
            held_out=held_out if self.split == "test" else "",
            voice=heard[0] if heard else "",
            **fields,  # type: ignore[arg-type]
        )
        return PlannedSample(sample, clips)


def _messages(task: str, text: str | None, heard: Clip | None, answer: str) -> tuple[dict[str, str], ...]:
    """The messages of a sample, the user's worded as at inference."""
    turns = task_turns(task, text, AUDIO_PLACEHOLDER if heard else None)
    asked = ({"role": role, "content": "".join(parts)} for role, parts in turns)
    return (*asked, {"role": "assistant", "content": answer})


def _new(make: Callable[[random.Random], str], draw: random.Random, held_out: Container[str]) -> str:
    """The next text that is not held out for the test."""
    while (text := make(draw)) in held_out:
        pass
    return text


def _answers(pools: Iterable[QuestionPool]) -> set[str]:
    return {question.fact.answer for pool in pools for question in pool.questions}
