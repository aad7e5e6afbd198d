"""What the scheduler takes in and gives out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vita_audio.contract.messages import GenerationSettings, State
from vita_audio.engines.interface import Sampling


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Prompt ids and validated settings of one stream."""

    prompt: Sequence[int]
    settings: GenerationSettings

    @property
    def sampling(self) -> Sampling:
        s = self.settings
        return Sampling(s.temperature, s.top_k, s.top_p, s.repetition_penalty, s.seed)


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New tokens of one stream, in order. The last delta of a stream has a final state and its reason."""

    stream: str
    index: int  # counts the deltas of a stream from 0
    tokens: list[int]
    state: State
    reason: str = ""
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        return self.state != "running"
