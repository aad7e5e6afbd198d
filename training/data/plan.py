"""Which samples a data folder holds: texts, prompts and the clips they need, decided before any sound is made."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from training.data.families import Question
from training.data.manifest import AUDIO_PLACEHOLDER, ChatSample
from training.data.questions import draw_questions, split_questions
from training.data.sentences import free_sentence, sentences
from training.data.settings import DataConfig
from training.data.teacher import Clip
from vita_audio.prompt import ASR_INSTRUCTION, SPOKEN_ANSWER_SYSTEM, TTS_INSTRUCTION


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """A sample and the clips of its audio placeholders, in order."""

    sample: ChatSample
    clips: tuple[Clip, ...]


def plan(config: DataConfig) -> list[PlannedSample]:
    """All samples of both splits, in a fixed order; paths of the clips are in place."""
    return [*_Plan(config, "test").samples(), *_Plan(config, "train").samples()]


class _Plan:
    """The samples of one split."""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config, self.split = config, split
        self.draw = random.Random(f"{config.seed} {split}")
        self.takes = 0
        self.count = 0

    def samples(self) -> Iterator[PlannedSample]:
        config, test = self.config, self.split == "test"
        kept = config.test_tts + config.test_asr  # the first sentences are the test's, whatever the sizes
        tts, asr = (config.test_tts, config.test_asr) if test else (config.tts, config.asr)
        texts = sentences(kept + config.tts + config.asr, config.seed)
        texts = texts[:kept] if test else texts[kept:]
        for text, kind in texts[:tts]:
            yield self._tts(text, kind)
        for text, kind in texts[tts : tts + asr]:
            yield self._asr(self._heard(text), kind)
        train_pools, test_pools = split_questions(config)
        held_out_of = {question.text: pool.held_out for pool in test_pools for question in pool.questions}

        def draw(name: str, test_count: int, train_count: int) -> Iterator[tuple[Question, str]]:
            pools, count = (test_pools, test_count) if test else (train_pools, train_count)
            for question in draw_questions(pools, count, f"{config.seed} {self.split} {name}"):
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
        if not test:
            for question, heard in spoken[: config.asr_questions]:
                yield self._asr(heard, question.family)
            answers = dict.fromkeys((question.fact.answer, question.family) for question, _ in spoken)
            for answer, family in list(answers)[: config.tts_answers]:
                yield self._tts(answer, family)
            words = random.Random(f"{config.seed} copies")
            for _ in range(config.copies):
                yield self._copy(free_sentence(words))

    def _heard(self, text: str) -> Clip:
        """A user's voice."""
        self.takes += 1
        return Clip(self.draw.choice(self.config.input_voices), text, self.takes)

    def _said(self, text: str) -> Clip:
        """The voice of the answers: always the same sound for the same text."""
        return Clip(self.config.output_voice, text, 0)

    def _tts(self, text: str, family: str) -> PlannedSample:
        messages = (_user(f"{TTS_INSTRUCTION}\n{text}"), _assistant(text + AUDIO_PLACEHOLDER))
        return self._planned("tts", family, messages, (self._said(text),), answer=text, held_out="sentence")

    def _asr(self, heard: Clip, family: str) -> PlannedSample:
        messages = (_user(f"{ASR_INSTRUCTION}\n{AUDIO_PLACEHOLDER}"), _assistant(heard.text))
        return self._planned("asr", family, messages, (heard,), answer=heard.text, held_out="sentence")

    def _copy(self, text: str) -> PlannedSample:
        messages = (_user(f"Repeat.\n{text}"), _assistant(text))
        return self._planned("copy", "free", messages, (), answer=text, held_out="sentence")

    def _chat(self, question: Question, heard: Clip | None, held_out: str) -> PlannedSample:
        fact = question.fact
        messages = (
            {"role": "system", "content": SPOKEN_ANSWER_SYSTEM},
            _user(AUDIO_PLACEHOLDER if heard else question.text),
            _assistant(fact.answer + AUDIO_PLACEHOLDER),
        )
        clips = (*([heard] if heard else []), self._said(fact.answer))
        return self._asked("chat", question, messages, clips, held_out)

    def _text(self, question: Question, held_out: str) -> PlannedSample:
        return self._asked("text", question, (_user(question.text), _assistant(question.fact.answer)), (), held_out)

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
        **fields: str | tuple[str, ...],
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


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
