"""The typed messages that cross model boundaries as JSON strings: generation settings and stream status."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["running", "done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """A validated request, defaults resolved: what `prompt` tells `speech_lm` (tensor SETTINGS).

    `mode` is the canonical name or pattern text, `pattern` its (m, n) numbers flattened. `seed` is always set, so that
    a client can repeat what it heard. `timings_ms` holds the stages already done, by stage name.
    """

    task: str
    mode: str
    pattern: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    timings_ms: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> GenerationSettings:
        fields: dict[str, Any] = json.loads(text)
        fields["pattern"] = tuple(fields["pattern"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Status:
    """The STATUS of one response (and LM_STATUS between `speech_lm` and `audio_decoder`).

    `stream` is the server's own id, `index` counts responses from 0. `reason` says why the stream ended (`end_token`,
    `max_tokens`, `context_limit`, `cancelled`, or the text of a failure). `timings_ms`: milliseconds per stage so far.
    """

    stream: str
    index: int
    state: State
    reason: str = ""
    task: str = ""
    mode: str = ""
    seed: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        return self.state != "running"

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Status:
        return cls(**json.loads(text))
