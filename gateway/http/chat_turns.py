"""The messages of a chat as one request to the server: the last turn with its sound, and what was said before it.

Before it go the tokens of the conversation, if its last answer is one that was spoken and is still kept (they hold the
sound of all turns); else its words.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.errors import GatewayError
from gateway.http.chat_request import ChatRequest, Message
from gateway.sound.decode import decode
from gateway.spoken_answers import SpokenAnswer
from gateway.voices import mode_of
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import RequestFields
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.past_messages import MAX_MESSAGES
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client.request import past_speech

Find = Callable[[str], SpokenAnswer | None]
_Placed = tuple[int, Message]  # a message, and its place among all


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A request to the server.

    Attributes:
        asked: digest of the messages it was made of.
        clips: all of its speech that is known, earlier turns first; each float32 [samples], at 16 kHz.
    """

    text: str | None
    fields: RequestFields
    asked: bytes
    clips: tuple[NDArray[np.float32], ...] = ()


def question_of(request: ChatRequest, find: Find) -> Question:
    """It decodes: call it in a thread.

    Args:
        find: a spoken answer, by its id.

    Raises:
        VitaError: a message is missing, empty, or has what cannot be used.
    """
    turns = [(place, each) for place, each in enumerate(request.messages) if each.role in ("user", "assistant")]
    if not turns or turns[-1][1].role != "user":
        raise InvalidRequest("messages", turns[-1][1].role if turns else None, "the last one is the user's")
    # The gateway itself gives empty answers, where a stop sequence comes first: nothing was said then.
    turns = [(place, each) for place, each in turns if each.role == "user" or each.words or each.audio is not None]
    answers = [place for place, (_, each) in enumerate(turns) if each.role == "assistant"]
    split = answers[-1] + 1 if answers else 0
    before, now = turns[:split], turns[split:]  # one turn may come in several messages
    fields: RequestFields = {
        "mode": mode_of(request.model),
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": None if request.seed is None else request.seed % 2**64,
    }
    if request.top_p == 0:  # of what is likeliest only: the server has no such share
        fields["temperature"], fields["top_p"] = 0.0, None
    system = [(place, each) for place, each in enumerate(request.messages) if each.role in ("system", "developer")]
    words = [text for _, each in now for text in each.texts]
    clips: tuple[NDArray[np.float32], ...] = ()
    if before and (kept := _continued(request.messages, before[-1], find)) is not None:
        fields["history"], clips = kept.history, kept.clips
        fields.update(past_speech(clips))
        words[:0] = [text for place, each in system if place > before[-1][0] for text in each.texts if text.strip()]
    else:
        fields["messages"] = _in_words(before, find)
        fields["system"] = "\n".join(text for _, each in system for text in each.texts if text.strip()) or None
    sounds = [(place, data) for place, each in now for data in each.sounds]
    if not sounds and not any(text.strip() for _, each in now for text in each.texts):
        raise InvalidRequest("messages", "nothing", "the last one has text or input_audio", "say something")
    if sounds:
        fields["audio"] = speech = _joined([data for _, data in sounds])
        fields["sample_rate"] = INPUT_SAMPLE_RATE_HZ
        clips = (*clips, speech)
    fields["task"] = "chat" if sounds or request.with_sound else "text"
    return Question("\n".join(words) or None, fields, _digest(request.messages), clips)


def _joined(sounds: Sequence[str]) -> NDArray[np.float32]:
    """Files in base64, joined. Raises InvalidRequest: one of them cannot be used, or they are too long together."""
    clips: list[NDArray[np.float32]] = []
    left_s = MAX_AUDIO_SECONDS
    for data in sounds:
        clips.append(decode(_decoded(data), "input_audio", left_s))
        left_s -= len(clips[-1]) / INPUT_SAMPLE_RATE_HZ
    return np.concatenate(clips)


def _continued(messages: Sequence[Message], last: _Placed, find: Find) -> SpokenAnswer | None:
    """The last answer, if its tokens are kept and are those of an answer to the messages before it."""
    place, message = last
    kept = None if message.audio is None else find(message.audio.id)
    return kept if kept is not None and len(kept.history) and kept.asked == _digest(messages[:place]) else None


def _in_words(turns: Sequence[_Placed], find: Find) -> str | None:
    """Turns that end with the assistant's, as the server takes them: in turn, the user first. Raises VitaError."""
    joined: list[dict[str, str]] = []
    for place, turn in turns:
        if turn.sounds:
            limit = "speech is taken in the last turn, or before an answer whose audio.id is kept"
            raise InvalidRequest(f"messages.{place}", "input_audio", limit, "send its transcript")
        words = turn.words or _transcript(place, turn, find)
        if not words:
            raise InvalidRequest("messages", turn.role, "a turn before the last one has words", "send its transcript")
        if joined and joined[-1]["role"] == turn.role:
            joined[-1]["content"] += f"\n{words}"
        elif joined or turn.role == "user":  # what the assistant says before it was asked is left out
            joined.append({"role": turn.role, "content": words})
    if len(joined) > MAX_MESSAGES:
        limit = f"at most {MAX_MESSAGES} turns before the last one are taken"
        raise InvalidRequest("messages", f"{len(joined)} turns", limit, "leave the oldest ones out")
    return json.dumps(joined) if joined else None


def _transcript(place: int, turn: Message, find: Find) -> str:
    """Of a spoken answer that was sent without its words."""
    if turn.audio is None:
        return ""
    kept = find(turn.audio.id)
    words = (turn.audio.transcript or "") if kept is None else kept.transcript
    if not words.strip():
        field = f"messages.{place}.audio.id"
        message = f"{field}: there is no spoken answer {turn.audio.id[:64]!r}, or no longer; send its words as content"
        raise GatewayError(message, code="audio_not_found", field=field)
    return words.strip()


def _digest(messages: Sequence[Message]) -> bytes:
    return hashlib.sha256(json.dumps([each.model_dump(exclude_none=True) for each in messages]).encode()).digest()


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("input_audio", data[:20], "it is base64") from error
