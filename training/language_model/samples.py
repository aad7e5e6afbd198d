"""A conversation as token ids: the prompt exactly as it is built at inference, the answer interleaved (facts 6.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.language_model.batch import Sample
from training.language_model.conversations import AUDIO_PLACEHOLDER, Conversation, Message
from vita_audio.text.chat_template import SPOKEN_ANSWER_SYSTEM, TTS_INSTRUCTION, discrete_audio
from vita_audio.text.interleave import interleave
from vita_audio.text.tokenizer import TextTokenizer


class SampleBuilder:
    """Writes samples for one checkpoint.

    Args:
        tokenizer: text to ids.
        ratio: t1, a1, t2, a2, ... of the mode that is trained (`vita_audio.text.interleave`).
    """

    def __init__(self, tokenizer: TextTokenizer, ratio: Sequence[int]) -> None:
        self._encode, self._vocabulary, self._ratio = tokenizer.encode, tokenizer.vocabulary, tuple(ratio)

    def build(self, conversation: Conversation, codes: Sequence[Sequence[int]]) -> Sample:
        """Ids of a conversation; answers, <|im_end|> and the line break after it are trained, nothing else.

        A spoken answer without a system message gets the one of inference, an answer to a TTS instruction that is
        only audio gets the text in front.

        Args:
            codes: speech codes of each audio, in order.

        Raises:
            ValueError: codes outside the vocabulary, or not one list for each placeholder.
        """
        vocabulary, remaining = self._vocabulary, list(codes)
        ids: list[int] = []
        trained: list[bool] = []
        messages = _completed(conversation.messages)
        for message in messages:
            wanted = message.content.count(AUDIO_PLACEHOLDER)
            content = self._content(message.content, remaining[:wanted])
            remaining = remaining[wanted:]
            opening = [vocabulary.im_start, *self._encode(f"{message.role}\n")]
            closing = [vocabulary.im_end, *self._encode("\n")]
            answer = message.role == "assistant"
            if answer:
                content = interleave(content, self._ratio, vocabulary.begin_of_audio, vocabulary.end_of_audio)
            ids += [*opening, *content, *closing]
            trained += [False] * len(opening) + [answer] * (len(content) + len(closing))
        if remaining:
            raise ValueError(f"{len(remaining)} audios are left over")
        return Sample(np.array(ids, np.int32), np.array(trained, np.bool_))

    def _content(self, content: str, codes: Sequence[Sequence[int]]) -> list[int]:
        first, *texts = content.split(AUDIO_PLACEHOLDER)
        ids = self._encode(first)
        for audio, text in zip(codes, texts, strict=True):
            ids += [*discrete_audio(self._vocabulary, audio), *self._encode(text)]
        return ids


def _completed(messages: Sequence[Message]) -> list[Message]:
    completed = list(messages)
    for index, message in enumerate(completed):
        asked = completed[index - 1].content if index else ""
        if message.role == "assistant" and message.content.strip() == AUDIO_PLACEHOLDER and _is_tts(asked):
            completed[index] = Message("assistant", asked.removeprefix(f"{TTS_INSTRUCTION}\n") + AUDIO_PLACEHOLDER)
    spoken = any(m.role == "assistant" and AUDIO_PLACEHOLDER in m.content for m in completed)
    if spoken and completed[0].role != "system" and not _is_tts(completed[0].content):
        completed.insert(0, Message("system", SPOKEN_ANSWER_SYSTEM))
    return completed


def _is_tts(content: str) -> bool:
    return content.startswith(f"{TTS_INSTRUCTION}\n")
