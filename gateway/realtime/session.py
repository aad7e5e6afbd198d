"""What a client sets for its session: every field of OpenAI's session object that means something here.

Fields that nothing here can honour are named in docs/gateway.md: they are ignored, or refused (`Refused`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from gateway.realtime.turn_taking import EAGERNESS_SILENCE_MS, TurnRules
from gateway.voices import check_voice
from vita_audio.contract.errors import InvalidRequest

#: Of `instructions` and of one text, in characters.
MAX_TEXT = 65_536
MaxTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class Pcm(BaseModel):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class Pcmu(BaseModel):
    type: Literal["audio/pcmu"]


class Pcma(BaseModel):
    type: Literal["audio/pcma"]


Format = Annotated[Pcm | Pcmu | Pcma, Field(discriminator="type")]


_RULES = TurnRules()


class ServerVad(BaseModel):
    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=_RULES.threshold, ge=0, le=1)
    prefix_padding_ms: int = Field(default=_RULES.prefix_padding_ms, ge=0, le=5000)
    silence_duration_ms: int = Field(default=_RULES.silence_duration_ms, ge=0, le=20_000)
    idle_timeout_ms: int | None = Field(default=None, ge=1000, le=60_000)
    create_response: bool = True
    interrupt_response: bool = True

    def rules(self) -> TurnRules:
        return TurnRules(self.threshold, self.prefix_padding_ms, self.silence_duration_ms)


class SemanticVad(BaseModel):
    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = Field(default=None, exclude=True)

    def rules(self) -> TurnRules:
        return TurnRules(silence_duration_ms=EAGERNESS_SILENCE_MS[self.eagerness])


TurnDetection = Annotated[ServerVad | SemanticVad, Field(discriminator="type")]


class Transcription(BaseModel):
    model: str | None = None
    language: str | None = None
    prompt: Text | None = None


class AudioInput(BaseModel):
    format: Format = Pcm()
    transcription: Transcription | None = None
    noise_reduction: dict[str, Any] | None = None
    turn_detection: TurnDetection | None = ServerVad()


def _voice_name(voice: Any) -> Any:
    """A voice may come as `{"id": name}`."""
    return voice.get("id") if isinstance(voice, dict) else voice


class AudioOutput(BaseModel):
    format: Format = Pcm()
    voice: Annotated[str, BeforeValidator(_voice_name), Field(max_length=64)] = "alloy"
    speed: float = Field(default=1.0, ge=0.25, le=1.5)

    @field_validator("voice")
    @classmethod
    def _known_voice(cls, voice: str) -> str:
        try:
            check_voice(voice)
        except InvalidRequest as error:
            raise ValueError(error.limit) from error
        return voice


class Audio(BaseModel):
    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


def _one_modality(modalities: Any) -> Any:
    """Sound always comes with its text, so both together are sound."""
    return ["audio"] if isinstance(modalities, list) and set(modalities) == {"audio", "text"} else modalities


Modalities = Annotated[
    list[Literal["text", "audio"]], Field(min_length=1, max_length=1), BeforeValidator(_one_modality)
]


class Unsupported(BaseModel):
    """What cannot be done. Tools are taken and never called, as a model may choose not to: Open WebUI's voice call
    brings one. A stored prompt would change the answers: an empty value is all that is taken.
    """

    tools: list[Any] = []
    prompt: Any = None

    @field_validator("prompt")
    @classmethod
    def _no_prompt(cls, prompt: Any) -> Any:
        if prompt is not None:
            raise ValueError("there are no stored prompts here; send instructions")
        return prompt


class RealtimeSession(Unsupported):
    """A conversation. The values are the defaults."""

    type: Literal["realtime"] = "realtime"
    object: Literal["realtime.session"] = "realtime.session"
    id: str = ""
    expires_at: int | None = None
    model: str = ""
    output_modalities: Modalities = ["audio"]
    instructions: Text = ""
    tool_choice: Any = "auto"
    max_output_tokens: MaxTokens = "inf"
    truncation: Any = "auto"
    tracing: Any = None
    include: list[str] | None = None
    audio: Audio = Audio()


class TranscriptionAudio(BaseModel):
    input: AudioInput = AudioInput(transcription=Transcription())


class TranscriptionSession(BaseModel):
    """Speech is written down, and nothing is answered."""

    type: Literal["transcription"] = "transcription"
    object: Literal["realtime.transcription_session"] = "realtime.transcription_session"
    id: str = ""
    expires_at: int | None = None
    include: list[str] | None = None
    audio: TranscriptionAudio = TranscriptionAudio()

    @model_validator(mode="after")
    def _always_transcribes(self) -> TranscriptionSession:
        self.audio.input.transcription = self.audio.input.transcription or Transcription()
        return self


Session = RealtimeSession | TranscriptionSession
#: Null switches these off; elsewhere it is the default.
_NULLABLE = {"turn_detection", "transcription", "noise_reduction", "tracing", "include", "prompt", "idle_timeout_ms"}
#: Replaced as a whole: their kinds have different fields.
_WHOLE = {"turn_detection", "format", "transcription", "noise_reduction", "voice", "truncation", "tracing"}
#: A session has the one it began with.
_FIXED = ("id", "object", "expires_at", "model")


def updated(session: Session, changes: dict[str, Any]) -> Session:
    """The session with the fields that `changes` has.

    Raises:
        pydantic.ValidationError: a value is not allowed; nothing is changed.
    """
    fixed = {name: value for name, value in session.model_dump().items() if name in _FIXED}
    return type(session).model_validate({**_merged(session.model_dump(), changes), **fixed})


def _merged(current: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(current)
    for name, value in changes.items():
        if value is None and name not in _NULLABLE:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict) and name not in _WHOLE:
            merged[name] = _merged(merged[name], value)
        elif isinstance(value, dict):
            merged[name] = {key: inner for key, inner in value.items() if inner is not None}
        else:
            merged[name] = value
    return merged
