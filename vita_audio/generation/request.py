"""What the scheduler takes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vita_audio.contract.messages import GenerationSettings
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
