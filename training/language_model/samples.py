"""A conversation as token ids: the prompt exactly as it is built at inference, the answer interleaved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.language_model.batch import Sample
from training.language_model.conversations import Conversation, Message
from vita_audio.text.chat_template import (
    AUDIO_PLACEHOLDER,
    SPOKEN_ANSWER_SYSTEM,
    TTS_INSTRUCTION,
    ChatTemplate,
    Turn,
)
from vita_audio.text.tokenizer import TextTokenizer


class SampleBuilder:
    """Writes samples for one checkpoint.

    Args:
        tokenizer: text to ids.
        ratio: t1, a1, t2, a2, ... of the mode that is trained (`vita_audio.text.interleave`).
    """

    def __init__(self, tokenizer: TextTokenizer, ratio: Sequence[int]) -> None:
        self._template, self._ratio = ChatTemplate(tokenizer), tuple(ratio)

    def build(self, conversation: Conversation, codes: Sequence[Sequence[int]]) -> Sample:
        """Ids of a conversation; answers, <|im_end|> and the line break after it are trained, nothing else.

        A spoken answer without a system message gets the one of inference, an answer to a TTS instruction that is
        only audio gets the text in front.

        Args:
            codes: speech codes of each audio, in order.

        Raises:
            ValueError: codes outside the vocabulary, or not one list for each placeholder.
        """
        remaining, turns = list(codes), []
        for message in _completed(conversation.messages):
            first, *texts = message.content.split(AUDIO_PLACEHOLDER)
            parts: list[str | Sequence[int]] = [first]
            for audio, text in zip(remaining[: len(texts)], texts, strict=True):
                parts += [audio, text]
            del remaining[: len(texts)]
            ratio = self._ratio if message.role == "assistant" else ()
            turns.append(Turn(message.role, self._template.content(parts, ratio)))
        if remaining:
            raise ValueError(f"{len(remaining)} audios are left over")
        ids, targets = self._template.conversation(turns)
        return Sample(np.array(ids, np.int32), np.array(targets, np.bool_))


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
