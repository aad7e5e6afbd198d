"""What a caller of `/v1/chat/completions` may send: OpenAI's fields that mean something here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from gateway.http.speech import Voice
from gateway.sound.encode import FileFormat

#: The first is OpenAI's own bound. All text that comes is searched for them.
_MAX_STOPS, _MAX_STOP_CHARACTERS = 4, 1000


class InputAudio(BaseModel):
    """`format` is not needed: the file says it."""

    data: str
    format: str = "wav"


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class AudioPart(BaseModel):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioReference(BaseModel):
    """An earlier spoken answer. `transcript` comes from callers that send the whole message back."""

    id: str = Field(max_length=64)
    transcript: str | None = None


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | AudioPart, Field(discriminator="type")]] | None = None
    audio: AudioReference | None = None

    @property
    def texts(self) -> list[str]:
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content or () if isinstance(part, TextPart)]

    @property
    def words(self) -> str:
        """All of its text, on one line."""
        return " ".join(self.texts).strip()

    @property
    def sounds(self) -> list[str]:
        """Files in base64."""
        if isinstance(self.content, str):
            return []
        return [part.input_audio.data for part in self.content or () if isinstance(part, AudioPart)]


class AudioParams(BaseModel):
    voice: Voice = "vita"
    format: Literal[FileFormat, "pcm16"] = "wav"


class StreamOptions(BaseModel):
    include_usage: bool = False


class ResponseFormat(BaseModel):
    type: Literal["text"]


class ChatRequest(BaseModel):
    """Fields that are not here (tools, penalties, ...) are taken and change nothing; what would change the answer and
    cannot be followed is refused.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioParams | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    n: Literal[1] | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > _MAX_STOPS or not all(0 < len(each) <= _MAX_STOP_CHARACTERS for each in stops):
            raise ValueError(
                f"there are at most {_MAX_STOPS} stop sequences, each of 1 to {_MAX_STOP_CHARACTERS} characters"
            )
        return stops

    @property
    def stops(self) -> list[str]:
        return self.stop if isinstance(self.stop, list) else []

    @property
    def with_sound(self) -> bool:
        return "audio" in (self.modalities or ())
