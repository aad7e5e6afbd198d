"""What the scheduler takes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vita_audio.contract.messages import GenerationSettings
from vita_audio.engines.cached_tokens import check_embedded
from vita_audio.engines.interface import Embedded, Sampling
from vita_audio.generation.content_keys import content_keys

#: Below this temperature the likeliest id is drawn whatever else there is, and its inverse is beyond float32.
COLDEST = 1e-4


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Prompt ids and validated settings of one stream.

    Args:
        embedded: rows that stand in the prompt of a Plus model in place of the embeddings of its ids; places are
            counted from the first id.

    Raises:
        EngineError: rows and places do not fit each other or the prompt.
    """

    prompt: Sequence[int]
    settings: GenerationSettings
    embedded: Embedded | None = None
    keys: Sequence[int] = field(init=False, repr=False, compare=False)  # what the prefix cache compares

    def __post_init__(self) -> None:
        if self.embedded is not None:
            check_embedded(self.embedded, len(self.prompt), self.embedded.rows.shape[-1])
        object.__setattr__(self, "keys", content_keys(self.prompt, self.embedded))

    @property
    def sampling(self) -> Sampling:
        s = self.settings
        temperature = s.temperature if s.temperature >= COLDEST else 0.0
        return Sampling(temperature, s.top_k, s.top_p, s.repetition_penalty, s.seed)
